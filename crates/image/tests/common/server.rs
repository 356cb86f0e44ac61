//! Debian's registry, for the tests of pull, push and login.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use image::Reference;

use super::needs;

/// A docker-registry on a free loopback port, ended with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl Server {
    /// One that lets in whoever proves to be one of `users`, or everybody.
    pub fn start(users: Option<&str>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let auth = users.map(|users| {
            fs::write(dir.path().join("users"), users).unwrap();
            format!(
                "htpasswd: {{realm: test, path: {}/users}}",
                dir.path().display()
            )
        });
        Self::in_directory(dir, auth.as_deref(), "")
    }

    /// One with a section `auth`, and with `http` added to that of its address; their files are in
    /// `dir`.
    pub fn in_directory(dir: tempfile::TempDir, auth: Option<&str>, http: &str) -> Option<Self> {
        if !needs("docker-registry", &["--version"]) {
            return None;
        }
        let path = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {path}/data}}\n  delete: {{enabled: true}}\n"
        );
        if let Some(auth) = auth {
            config += &format!("auth: {{{auth}}}\n");
        }
        // The port is free when asked and taken a moment later; a collision shows as an early end.
        for _ in 0..2 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let file = dir.path().join("config.yml");
            fs::write(
                &file,
                format!("{config}http: {{addr: \"127.0.0.1:{port}\"{http}}}\n"),
            )
            .unwrap();
            let mut command = Command::new("docker-registry");
            command
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = command.process_group(0).spawn().unwrap();
            for _ in 0..200 {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(Self { child, port, dir });
                }
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    pub fn name(&self, rest: &str) -> Reference {
        format!("127.0.0.1:{}/{rest}", self.port).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An htpasswd line by whatever tool is here.
pub fn hashed(user: &str, password: &str) -> Option<String> {
    let script = "import crypt,sys; print(sys.argv[1]+':'+crypt.crypt(sys.argv[2], crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))";
    let output = Command::new("python3")
        .args(["-W", "ignore", "-c", script, user, password])
        .output()
        .ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    line.contains("$2").then_some(line)
}
