//! Network namespaces: tests send packets nowhere else.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::ensure;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with loopback up; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// A new one. Needs root and iproute2.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-test-{}-{n}", std::process::id());
        let path = Path::new("/run/netns").join(&name);
        ip(&["netns", "add", &name])?;
        let made = Self { name, path };
        ip(&["-n", &made.name, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// Its file, for `setns(2)` and `--netns`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Not `ip netns exec`: that hides /sys/fs/cgroup.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .arg(program);
        command
    }
}

impl Netns {
    /// Runs `work` on a thread inside: its sockets belong there for as long as they are open.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let netns = std::fs::File::open(&self.path)?;
        let inside = || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words:?}: {error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_only_loopback_and_goes_away() {
        if crate::lacks("a_namespace_has_only_loopback", &["ip", "nsenter"]) {
            return;
        }
        let netns = Netns::new().unwrap();
        let links = netns.command("ip").args(["-o", "link"]).output().unwrap();
        let links = String::from_utf8(links.stdout).unwrap();
        assert!(
            links
                .lines()
                .any(|line| line.contains(" lo:") && line.contains("UP")),
            "{links}"
        );
        assert!(!links.contains(" eth0"), "{links}");
        let path = netns.path().to_owned();
        assert!(path.exists());
        drop(netns);
        assert!(!path.exists());
    }
}
