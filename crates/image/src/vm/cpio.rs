//! Writes initramfs archives in the kernel's `newc` form.
//!
//! The same entries give the same bytes: no times, owner root, inode numbers counted. Several archives
//! one after the other are one initramfs, later files replacing earlier ones, as long as each starts at a
//! multiple of four bytes. See `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// An archive being written to memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Its parents come before it.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, 0o040_000 | mode, &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | mode, content);
    }

    /// The archive, its length a multiple of four.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let length = u32::try_from(content.len()).expect("modules and programs are below 4 GiB");
        let name_length = u32::try_from(path.len() + 1).expect("paths are short");
        self.bytes.extend_from_slice(b"070701");
        let fields: [u32; 13] = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            links,
            0, // time
            length,
            0, // device of the file, major and minor
            0,
            0, // device that it is
            0,
            name_length,
            0, // checksum, not in this form
        ];
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The archive to append to a kernel's initramfs, so that a guest finds its configuration: one file,
/// `/berth/config.json`.
#[must_use]
pub fn config_archive(config: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("berth", 0o700);
    archive.file("berth/config.json", 0o600, config);
    archive.finish()
}

/// The archive to append to the initial file system of a guest that boots by itself: its configuration,
/// and the agent as `/berth/agent`, which the kernel is told to start first.
#[must_use]
pub fn agent_archive(config: &[u8], agent: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("berth", 0o700);
    archive.file("berth/config.json", 0o600, config);
    archive.file("berth/agent", 0o700, agent);
    archive.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.directory("a", 0o755);
        archive.file("a/odd", 0o755, b"12345");
        archive.file("empty", 0o600, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let spawned = Command::new("cpio")
            .args(["-i", "--quiet", "--make-directories"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIP cpio_reads_back_what_was_written: cpio is not installed"
            );
            return;
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("a/odd")).unwrap(), b"12345");
        assert_eq!(std::fs::read(dir.path().join("empty")).unwrap(), b"");
    }
}
