//! A real registry: Debian's `docker-registry`, without TLS, on loopback of a network namespace.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use crate::{Background, Netns};

/// A registry; gone, with what it held, when dropped.
#[derive(Debug)]
pub struct Registry {
    _process: Background,
    directory: tempfile::TempDir,
}

impl Registry {
    /// Where it listens, as the first part of a reference.
    pub const ADDRESS: &'static str = "127.0.0.1:5000";

    /// Starts one inside.
    ///
    /// # Errors
    /// When it does not start; needs `docker-registry` and `curl`.
    pub fn start(netns: &Netns) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{}'}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}, delete: {{enabled: true}}}}\n",
            Self::ADDRESS,
            directory.path().display()
        );
        fs::write(&config, text)?;
        let mut command = netns.command("docker-registry");
        command.arg("serve").arg(&config);
        let answers = || {
            let mut curl = netns.command("curl");
            curl.args(["-fs", "-o", "/dev/null"]);
            curl.arg(format!("http://{}/v2/", Self::ADDRESS));
            curl.status().is_ok_and(|status| status.success())
        };
        let log = directory.path().join("log");
        let process = Background::start(command, &log, answers)?;
        Ok(Self {
            _process: process,
            directory,
        })
    }

    /// The file that holds the largest blob, for tests that damage it.
    ///
    /// # Errors
    /// When there is none.
    pub fn largest_blob(&self) -> anyhow::Result<PathBuf> {
        let mut blobs = Vec::new();
        let mut open = vec![self.directory.path().join("data")];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                } else if entry.file_name() == "data" {
                    blobs.push((entry.metadata()?.len(), entry.path()));
                }
            }
        }
        let largest = blobs.into_iter().max();
        Ok(largest.context("the registry is empty")?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_answers_in_its_namespace() {
        if crate::lacks("a_registry_answers", &["ip", "docker-registry", "curl"]) {
            return;
        }
        let netns = Netns::new().unwrap();
        let _registry = Registry::start(&netns).unwrap();
        let url = format!("http://{}/v2/_catalog", Registry::ADDRESS);
        let answer = netns.command("curl").args(["-fsS", &url]).output().unwrap();
        assert_eq!(answer.stdout, b"{\"repositories\":[]}\n", "{answer:?}");
    }
}
