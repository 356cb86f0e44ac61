//! Mounts: `-v SOURCE:TARGET[:ro]`, `--mount type=…,…`, `--tmpfs TARGET[:size=…]`.

use api::{Mount, MountType};

/// Reads a `--volume` value. A source with a slash or a leading dot is a path of this host, made
/// absolute; anything else is the name of a volume.
pub fn volume(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(format!(
            "{text:?} lacks a target: write /path/here:/path/inside or NAME:/path/inside"
        ));
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        (Some(other), _) => return Err(format!("{other:?} is not an option: use ro or rw")),
        (None, Some(_)) => false,
    };
    let (kind, source) = source_of(source)?;
    Ok(Mount {
        kind,
        source: Some(source),
        target: absolute(target)?,
        read_only,
        size: None,
    })
}

fn source_of(source: &str) -> Result<(MountType, String), String> {
    if source.starts_with('.') || source.contains('/') {
        Ok((MountType::Bind, host_path(source)?))
    } else if source.is_empty() {
        Err("the source is empty: name a path of this host or a volume".into())
    } else {
        Ok((MountType::Volume, source.to_owned()))
    }
}

/// A path of this host, absolute and without `.` and `..` where that is plain.
fn host_path(path: &str) -> Result<String, String> {
    let found = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let path = found.map_err(|error| format!("{path:?} cannot be made absolute: {error}"))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| format!("{path:?} is not UTF-8"))
}

fn absolute(target: &str) -> Result<String, String> {
    if target.starts_with('/') {
        Ok(target.to_owned())
    } else {
        Err(format!("{target:?} is not an absolute path inside"))
    }
}

/// Reads a `--tmpfs` value: `TARGET[:size=SIZE]`.
pub fn tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let size = match options.split_once('=') {
        None if options.is_empty() => None,
        Some(("size", size)) => Some(super::size(size)?),
        _ => return Err(format!("{options:?} is not an option: use size=64M")),
    };
    Ok(Mount {
        kind: MountType::Tmpfs,
        source: None,
        target: absolute(target)?,
        read_only: false,
        size,
    })
}

/// Reads a `--mount` value: `type=bind|volume|tmpfs,source=…,target=…[,readonly][,size=…]`.
pub fn mount(text: &str) -> Result<Mount, String> {
    let (mut kind, mut source, mut target, mut size) = (None, None, None, None);
    let mut read_only = false;
    for part in text.split(',') {
        match part.split_once('=').unwrap_or((part, "true")) {
            ("type", "bind") => kind = Some(MountType::Bind),
            ("type", "volume") => kind = Some(MountType::Volume),
            ("type", "tmpfs") => kind = Some(MountType::Tmpfs),
            ("type", other) => {
                return Err(format!(
                    "{other:?} is not a type: use bind, volume or tmpfs"
                ));
            }
            ("source" | "src", value) => source = Some(value.to_owned()),
            ("target" | "dst" | "destination", value) => target = Some(absolute(value)?),
            ("readonly" | "ro", "true") => read_only = true,
            ("readonly" | "ro", "false") => read_only = false,
            ("size", value) => size = Some(super::size(value)?),
            (key, _) => {
                return Err(format!(
                    "{key:?} is not an option: use type, source, target, readonly and size"
                ));
            }
        }
    }
    let kind = kind.ok_or("it lacks a type: type=bind, volume or tmpfs")?;
    let target = target.ok_or("it lacks a target: target=/path/inside")?;
    let source = match (kind, source) {
        (MountType::Tmpfs, None) => None,
        (MountType::Tmpfs, Some(_)) => return Err("a tmpfs has no source".into()),
        (_, None) => return Err("it lacks a source: source=…".into()),
        (MountType::Bind, Some(path)) => Some(host_path(&path)?),
        (MountType::Volume, Some(name)) => Some(name),
    };
    if size.is_some() && kind != MountType::Tmpfs {
        return Err(
            "only a tmpfs has a size here; for a volume use `berth volume create --size`".into(),
        );
    }
    Ok(Mount {
        kind,
        source,
        target,
        read_only,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mount: Result<Mount, String>) -> String {
        serde_json::to_string(&mount.unwrap()).unwrap()
    }

    #[test]
    fn the_forms_of_a_mount() {
        let named = r#"{"type":"volume","source":"data","target":"/d"}"#;
        assert_eq!(text(volume("data:/d")), named);
        assert_eq!(text(mount("type=volume,src=data,dst=/d")), named);
        let bound = r#"{"type":"bind","source":"/etc","target":"/e","read_only":true}"#;
        assert_eq!(text(volume("/etc:/e:ro")), bound);
        assert_eq!(text(volume("/usr/../etc:/e:ro")), bound);
        assert_eq!(
            text(mount("type=bind,source=/etc,target=/e,readonly")),
            bound
        );
        let memory = r#"{"type":"tmpfs","target":"/t","size":"64M"}"#;
        assert_eq!(text(tmpfs("/t:size=64M")), memory);
        assert_eq!(text(mount("type=tmpfs,target=/t,size=64M")), memory);
        let here = std::env::current_dir().unwrap();
        let relative = volume("./x:/x").unwrap().source.unwrap();
        assert_eq!(relative, here.join("x").to_str().unwrap());
        for bad in ["", "data", "data:rel", ":/x", "a:/b:rx", "a:/b:ro:x"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            "type=bind",
            "type=nfs,target=/x",
            "type=tmpfs,source=a,target=/x",
            "x=y",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
        for bad in ["", "t", "/t:mode=1", "/t:size=x"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }
}
