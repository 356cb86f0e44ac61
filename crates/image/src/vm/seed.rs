//! Seed disks: what a guest's cloud-init is told, as a small disk it finds by its label.
//!
//! The NoCloud form of cloud-init: a file system labelled `cidata` with `meta-data`, `user-data`,
//! `vendor-data` and `network-config` in its root (cloud-init's reference, "NoCloud"). FAT, since every kernel of a
//! distribution reads it. Made before each start by whoever starts a machine; the same seed gives the same
//! bytes. Knows nothing of instances, and never looks into the user data.

use std::{
    io::{self, Cursor, Write},
    net::IpAddr,
};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::{Value, json};

/// The label by which cloud-init finds the disk.
const LABEL: [u8; 11] = *b"cidata     ";
/// What the file system takes besides its files.
const OVERHEAD_BYTES: usize = 256 << 10;
const SECTOR_BYTES: usize = 512;
/// Data that asks for nothing.
const NOTHING: &str = "#cloud-config\n{}\n";

/// What a guest is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// Another one makes cloud-init begin anew.
    pub instance_id: String,
    /// The guest's host name.
    pub hostname: String,
    /// Content of the user-data file; an empty cloud-config when `None`.
    pub user_data: Option<String>,
    /// Public keys for the image's own user, each a line.
    pub ssh_keys: Vec<String>,
    /// Its network interface; no network when `None`.
    pub interface: Option<SeedInterface>,
}

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedInterface {
    /// Hardware address, by which the guest finds it.
    pub mac: [u8; 6],
    /// Addresses with the subnet's length, such as `10.77.0.2/20`.
    pub addresses: Vec<String>,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Servers for names.
    pub nameservers: Vec<IpAddr>,
    /// Largest packet in bytes; the device's own when `None`.
    pub mtu: Option<u32>,
}

impl Seed {
    /// The files of the seed: name and content.
    #[must_use]
    pub fn files(&self) -> [(&'static str, String); 4] {
        let meta = json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
            "public-keys": self.ssh_keys,
        });
        let user = self.user_data.clone();
        [
            // JSON is YAML, with nothing to escape wrongly.
            ("meta-data", text(&meta)),
            ("user-data", user.unwrap_or_else(|| NOTHING.to_owned())),
            // Releases differ in whether they miss it.
            ("vendor-data", NOTHING.to_owned()),
            ("network-config", text(&self.network())),
        ]
    }

    /// Networking in version 2 of cloud-init's format. Routes name their network, which releases
    /// before `to: default` understand too.
    fn network(&self) -> Value {
        let Some(interface) = &self.interface else {
            return json!({ "version": 2, "ethernets": {} });
        };
        let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
        let routes: Vec<Value> = interface
            .gateways
            .iter()
            .map(|gateway| {
                let all = if gateway.is_ipv4() {
                    "0.0.0.0/0"
                } else {
                    "::/0"
                };
                json!({ "to": all, "via": gateway })
            })
            .collect();
        let mut card = json!({
            "match": { "macaddress": mac },
            "addresses": interface.addresses,
            "routes": routes,
        });
        if !interface.nameservers.is_empty() {
            card["nameservers"] = json!({ "addresses": interface.nameservers });
        }
        if let Some(mtu) = interface.mtu {
            card["mtu"] = json!(mtu);
        }
        json!({ "version": 2, "ethernets": { "net0": card } })
    }

    /// The disk.
    ///
    /// # Errors
    /// When the file system cannot be made, which in memory means that there is too little of it.
    pub fn disk(&self) -> io::Result<Vec<u8>> {
        let files = self.files();
        let content: usize = files.iter().map(|(_, text)| text.len()).sum();
        let bytes = (OVERHEAD_BYTES + 2 * content).next_multiple_of(SECTOR_BYTES);
        let mut disk = vec![0; bytes];
        let options = FormatVolumeOptions::new()
            .fat_type(FatType::Fat12)
            .volume_label(LABEL);
        format_volume(Cursor::new(&mut disk), options)?;
        let file_system = FileSystem::new(Cursor::new(&mut disk), FsOptions::new())?;
        for (name, text) in files {
            let mut file = file_system.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        file_system.unmount()?;
        Ok(disk)
    }
}

fn text(value: &Value) -> String {
    let mut text = value.to_string();
    text.push('\n');
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    fn seed() -> Seed {
        Seed {
            instance_id: "01a1f98c".to_owned(),
            hostname: "box".to_owned(),
            user_data: Some("#cloud-config\npackages: [nginx]\n".to_owned()),
            ssh_keys: vec!["ssh-ed25519 AAAA \"me\": here".to_owned()],
            interface: Some(SeedInterface {
                mac: [2, 0, 0, 0, 0, 0xa],
                addresses: vec!["10.77.0.2/20".to_owned(), "fd00::2/64".to_owned()],
                gateways: vec!["10.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                nameservers: vec!["10.77.0.1".parse().unwrap()],
                mtu: Some(1400),
            }),
        }
    }

    /// What a guest reads: the label, and the files of the root.
    fn read(disk: &[u8]) -> (String, Vec<(String, String)>) {
        let disk = FileSystem::new(Cursor::new(disk.to_vec()), FsOptions::new()).unwrap();
        let label = disk.read_volume_label_from_root_dir().unwrap().unwrap();
        let files = disk.root_dir().iter().map(|entry| {
            let entry = entry.unwrap();
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        });
        (label, files.collect())
    }

    #[test]
    fn what_was_seeded_is_read_back() {
        let disk = seed().disk().unwrap();
        assert_eq!(disk, seed().disk().unwrap(), "the same seed, another disk");
        let (label, files) = read(&disk);
        assert_eq!(label, "cidata");
        let [
            (meta_name, meta),
            (user_name, user),
            vendor,
            (net_name, net),
        ] = &files[..]
        else {
            panic!("{files:?}");
        };
        assert_eq!(
            [meta_name, user_name, net_name],
            ["meta-data", "user-data", "network-config"]
        );
        assert_eq!(vendor, &("vendor-data".to_owned(), NOTHING.to_owned()));
        assert_eq!(user, "#cloud-config\npackages: [nginx]\n");
        let meta: Value = serde_json::from_str(meta).unwrap();
        assert_eq!(meta["local-hostname"], "box");
        assert_eq!(meta["public-keys"][0], "ssh-ed25519 AAAA \"me\": here");
        let net: Value = serde_json::from_str(net).unwrap();
        let card = &net["ethernets"]["net0"];
        assert_eq!(card["match"]["macaddress"], "02:00:00:00:00:0a");
        assert_eq!(card["addresses"][1], "fd00::2/64");
        assert_eq!(card["routes"][1]["to"], "::/0");
        assert_eq!(card["nameservers"]["addresses"][0], "10.77.0.1");
        assert_eq!(card["mtu"], 1400);
    }

    #[test]
    fn a_seed_of_any_size_fits_its_disk() {
        for bytes in [0, 1, 4096, 64 << 10] {
            let large = Seed {
                user_data: Some("x".repeat(bytes)),
                ssh_keys: vec!["k".repeat(8 << 10); 64],
                ..Seed::default()
            };
            let (_, files) = read(&large.disk().unwrap());
            assert_eq!(files[1].1.len(), bytes);
        }
    }

    #[test]
    fn the_tools_of_a_host_see_the_label() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        std::fs::write(&path, seed().disk().unwrap()).unwrap();
        let probe = Command::new("blkid")
            .args(["-p", "-o", "export"])
            .arg(&path)
            .stdin(Stdio::null())
            .output();
        let Ok(output) = probe else {
            let test = "the_tools_of_a_host_see_the_label";
            let _ = writeln!(io::stderr(), "SKIP {test}: blkid is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("LABEL=cidata"), "{text}");
        assert!(text.contains("TYPE=vfat"), "{text}");
    }
}
