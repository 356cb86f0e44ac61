//! Entry points for fuzzers: every parser of outside bytes of this crate. Also driven by proptest.

use crate::bundle;
use crate::spec::{Mount, Process, Spec};

/// Feeds `data` to all parsers; none may panic, and what validation accepts must survive a round trip.
pub fn fuzz(data: &[u8]) {
    crate::shim::fuzz(data);
    if let Ok(spec) = bundle::parse::<Spec>(data)
        && crate::validate::spec(&spec).is_ok()
        && spec.linux.seccomp.is_none()
    {
        let json = serde_json::to_vec(&spec).expect("plain data serializes");
        let again: Spec = serde_json::from_slice(&json).expect("what was written can be read");
        assert_eq!(spec, again);
    }
    if let Ok(process) = bundle::parse::<Process>(data) {
        let _ = crate::validate::process(&process, "");
    }
    let text = String::from_utf8_lossy(data);
    let mount = Mount {
        destination: "/x".into(),
        kind: "tmpfs".into(),
        options: text.split(',').map(str::to_owned).collect(),
        ..Mount::default()
    };
    let _ = crate::mounts::options::parse(&mount);
    let _ = crate::limits::number_list(&text);
    let _ = crate::process::home_in(data, 0);
    let _ = crate::cgroups::path(&text, "x");
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data: Vec<u8>) {
            super::fuzz(&data);
        }

        #[test]
        fn arbitrary_json_shapes_never_panic(
            key in "(process|root|mounts|linux|hooks|ociVersion)",
            value in "(null|[0-9]{1,20}|\"[a-z/.]{0,20}\"|\\[\\]|\\{\\}|\\[\\{\"type\":\"user\"\\}\\])",
        ) {
            super::fuzz(format!("{{\"ociVersion\":\"1.0.0\",\"root\":{{\"path\":\"r\"}},\"{key}\":{value}}}").as_bytes());
        }
    }
}
