//! What a virtual machine's guest is given at its first boot: user data for cloud-init, SSH keys.

use crate::validate::Report;

use super::machine::MachineSpec;

/// Most bytes of user data: a spec has to fit one transaction of the store.
pub const MAX_USER_DATA_BYTES: usize = 64 << 10;
/// Most SSH keys.
pub const MAX_SSH_KEYS: usize = 64;
/// Most bytes of one key: RSA with 16,384 bits takes under 3 KiB.
const MAX_KEY_BYTES: usize = 8 << 10;

/// Kinds of public keys (`sshd(8)`, "AUTHORIZED_KEYS FILE FORMAT").
const KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

impl MachineSpec {
    /// Whether the guest is given anything that cloud-init reads.
    #[must_use]
    pub fn is_customized(&self) -> bool {
        self.user_data.is_some() || !self.ssh_keys.is_empty()
    }

    pub(super) fn validate_customization(&self, report: &mut Report) {
        let data = self.user_data.as_deref().unwrap_or_default();
        report.require(
            data.len() <= MAX_USER_DATA_BYTES,
            "machine.user_data",
            "at most 64 KiB; let it fetch what is larger",
        );
        report.require(
            !data.contains('\0'),
            "machine.user_data",
            "it must be text, and contains a NUL byte",
        );
        report.require(
            self.ssh_keys.len() <= MAX_SSH_KEYS,
            "machine.ssh_keys",
            "at most 64",
        );
        for (index, key) in self.ssh_keys.iter().enumerate() {
            if let Err(reason) = check_key(key) {
                report.add(format!("machine.ssh_keys[{index}]"), reason);
            }
        }
        if let Some(user) = &self.ssh_user {
            report.require(
                is_user(user),
                "machine.ssh_user",
                "a user name of lower-case letters, digits, '_' and '-', at most 32",
            );
            report.require(
                !self.ssh_keys.is_empty(),
                "machine.ssh_user",
                "without SSH keys it says nothing; add one to ssh_keys",
            );
        }
    }
}

/// Checks one line of an `authorized_keys` file that has no options.
fn check_key(line: &str) -> Result<(), &'static str> {
    if line.contains("PRIVATE KEY") {
        return Err("this is a private key, which stays with you; give the .pub file beside it");
    }
    if line.len() > MAX_KEY_BYTES || line.chars().any(char::is_control) {
        return Err("one line of at most 8 KiB, as in a .pub file");
    }
    let mut words = line.split(' ');
    let kind = words.next().unwrap_or_default();
    if !KEY_TYPES.contains(&kind) {
        return Err("it must begin with the kind of key, such as ssh-ed25519, as in a .pub file");
    }
    let key = words.next().unwrap_or_default();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    if key.len() < 40 || !key.starts_with("AAAA") || !key.bytes().all(base64) {
        return Err("the key itself is damaged; copy the whole line of the .pub file");
    }
    Ok(())
}

/// Names that `useradd(8)` takes.
fn is_user(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
    name.len() <= 32 && name.bytes().all(plain) && name.bytes().next().is_some_and(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxFZ8PZ5s3FmXcZ1gU3u3mQw0a9b2r6k1q4t7y8u9i0 me@here";

    fn wrong(machine: &MachineSpec) -> Vec<String> {
        let mut report = Report::default();
        machine.validate_customization(&mut report);
        let fields = report.finish().err().map(|invalid| invalid.fields);
        fields.into_iter().flatten().map(|it| it.field).collect()
    }

    #[test]
    fn keys_users_and_user_data_are_checked_by_field() {
        let good = MachineSpec {
            user_data: Some("#cloud-config\n".to_owned()),
            ssh_keys: vec![KEY.to_owned(), KEY.replace(" me@here", "")],
            ssh_user: Some("deploy-1".to_owned()),
            ..MachineSpec::default()
        };
        assert!(wrong(&good).is_empty());
        assert!(good.is_customized());
        for bad in [
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "ssh-ed25519",
            "ssh-ed25519 hello",
            &KEY.replace("AAAA", "AAA!"),
            &format!("{KEY}\n{KEY}"),
            &format!("command=\"x\" {KEY}"),
            "",
        ] {
            let machine = MachineSpec {
                ssh_keys: vec![KEY.to_owned(), bad.to_owned()],
                ..MachineSpec::default()
            };
            assert_eq!(wrong(&machine), ["machine.ssh_keys[1]"], "{bad:?}");
        }
        for (user, keys) in [("Root", 1), ("", 1), ("a b", 1), ("../x", 1), ("root", 0)] {
            let machine = MachineSpec {
                ssh_user: Some(user.to_owned()),
                ssh_keys: vec![KEY.to_owned(); keys],
                ..MachineSpec::default()
            };
            assert_eq!(wrong(&machine), ["machine.ssh_user"], "{user:?}");
        }
        let large = MachineSpec {
            user_data: Some("x".repeat(MAX_USER_DATA_BYTES + 1)),
            ..MachineSpec::default()
        };
        assert_eq!(wrong(&large), ["machine.user_data"]);
    }
}
