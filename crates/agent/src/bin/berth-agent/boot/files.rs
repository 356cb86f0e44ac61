//! Files the guest's programs read: who it is, where names come from, what the host adds.
//!
//! Written inside the new root, where a link of the image leads where the guest's programs would be led,
//! and nowhere else.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use agent::config::{Config, Dns, Interface};

use super::{BootError, at};

/// Writes host name, `hosts`, `resolv.conf`, networkd's configuration and the host's own files.
pub fn write(config: &Config) -> Result<(), BootError> {
    rustix::system::sethostname(config.hostname.as_bytes())
        .map_err(at("set the host name", &config.hostname))?;
    if config.root.read_only {
        return Ok(());
    }
    let line = format!("{}\n", config.hostname);
    replace("etc/hostname", &line, 0o644)?;
    replace("etc/hosts", &hosts(config), 0o644)?;
    if !config.dns.servers.is_empty() {
        replace("etc/resolv.conf", &resolv_conf(&config.dns), 0o644)?;
    }
    for file in &config.files {
        replace(&file.path, &file.content, file.mode)?;
    }
    Ok(())
}

/// Copies the agent to where it outlives the initramfs.
pub fn keep_agent() -> Result<(), BootError> {
    let directory = Path::new(crate::RUN_DIRECTORY);
    fs::create_dir_all(directory).map_err(at("make", directory))?;
    let copy = directory.join("berth-agent");
    fs::copy("/proc/self/exe", &copy).map_err(at("write", &copy))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).map_err(at("write", &copy))
}

/// Puts a file in place of whatever is there, also of a symbolic link.
fn replace(path: &str, content: &str, mode: u32) -> Result<(), BootError> {
    let path = Path::new("/").join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at("make", parent))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("replace", &path)(error));
        }
        _ => {}
    }
    let mut options = fs::File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode & 0o7777)
        .open(&path)
        .map_err(at("write", &path))?;
    io::Write::write_all(&mut file, content.as_bytes()).map_err(at("write", &path))?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
        .map_err(at("write", &path))
}

fn hosts(config: &Config) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own = config.interfaces.iter().flat_map(|it| &it.addresses).next();
    let own = own.map_or("127.0.1.1", |address| {
        address.split('/').next().unwrap_or(address)
    });
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{own}\t{}", config.hostname);
    for line in &config.hosts {
        let _ = writeln!(text, "{}\t{}", line.address, line.names.join(" "));
    }
    text
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// A configuration for systemd-networkd that agrees with what has been set up, so that it leaves the
/// interface as it is whether or not the image enables it. See `systemd.network(5)`.
pub fn networkd(interface: &Interface, dns: &Dns) -> String {
    let mut text = format!(
        "[Match]\nMACAddress={}\n\n[Network]\nKeepConfiguration=yes\nIPv6AcceptRA=no\n",
        interface.mac
    );
    for address in &interface.addresses {
        let _ = writeln!(text, "Address={address}");
    }
    for gateway in &interface.gateways {
        let _ = writeln!(text, "Gateway={gateway}");
    }
    for server in &dns.servers {
        let _ = writeln!(text, "DNS={server}");
    }
    if !dns.search.is_empty() {
        let _ = writeln!(text, "Domains={}", dns.search.join(" "));
    }
    text
}
