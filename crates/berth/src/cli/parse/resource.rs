//! Devices and resource limits: `/dev/fuse:/dev/fuse:rw`, `nofile=1024:4096`.

use api::{Device, Ulimit};

/// Reads a `--device` value: `HOST[:INSIDE[:rwm]]`.
pub fn device(text: &str) -> Result<Device, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, inside, permissions) = match parts[..] {
        [host] => (host, None, None),
        [host, inside] if inside.starts_with('/') => (host, Some(inside), None),
        [host, permissions] => (host, None, Some(permissions)),
        [host, inside, permissions] => (host, Some(inside), Some(permissions)),
        _ => return Err("write it as /dev/HOST[:/dev/INSIDE[:rwm]]".into()),
    };
    if !host.starts_with("/dev/") {
        return Err(format!(
            "{host:?} is not a device: its path starts with /dev/"
        ));
    }
    if permissions.is_some_and(|p| p.is_empty() || !p.chars().all(|c| "rwm".contains(c))) {
        return Err("permissions are any of r, w and m".into());
    }
    Ok(Device {
        host_path: host.to_owned(),
        path: inside.map(str::to_owned),
        permissions: permissions.map(str::to_owned),
    })
}

/// Reads a `--ulimit` value: `NAME=SOFT[:HARD]`; `unlimited` and `-1` mean no limit.
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong =
        || format!("{text:?} is not a limit: write NAME=SOFT[:HARD], such as nofile=1024:4096");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = (value(soft)?, value(hard)?);
    if name.is_empty() || soft > hard {
        return Err(wrong());
    }
    Ok(Ulimit {
        name: name.to_ascii_lowercase(),
        soft,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_limits() {
        let made = device("/dev/fuse:/dev/f:rw").unwrap();
        assert_eq!(made.path.as_deref(), Some("/dev/f"));
        assert_eq!(
            device("/dev/fuse:r").unwrap().permissions.as_deref(),
            Some("r")
        );
        for bad in [
            "",
            "/etc/passwd",
            "/dev/a:/dev/b:x",
            "/dev/a:",
            "/dev/a:/b:r:w",
        ] {
            assert!(device(bad).is_err(), "{bad}");
        }
        let made = ulimit("NOFILE=10:unlimited").unwrap();
        assert_eq!(
            (made.name.as_str(), made.soft, made.hard),
            ("nofile", 10, u64::MAX)
        );
        for bad in ["", "nofile", "=1", "nofile=2:1", "nofile=x"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }
}
