//! What the guest of a virtual machine is given: a seed disk for cloud-init, and SSH keys.

use crate::machine;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxFZ8PZ5s3FmXcZ1gU3u3mQw0a9b2r6k1q4t7y8u9i0 me@here";

#[test]
fn a_guest_finds_its_seed_and_lets_the_keys_in() {
    let Some(daemon) = machine::daemon("a_guest_finds_its_seed_and_lets_the_keys_in") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let data = file("user-data", "#cloud-config\nruncmd: [[echo, hello]]\n");
    let key = file("key.pub", &format!("{KEY}\n"));
    let flags = ["--vm", "--memory", "128M", "--cloud-init", &data];
    let run = ["run", "-d", "--name", "box", "--hostname", "seeded"];
    let keys = ["--ssh-key", &key, "busybox", "sleep", "1000"];
    daemon.berth(&[&run[..], &flags, &keys].concat()).unwrap();
    let inside = |script: &str| daemon.run(&["exec", "box", "sh", "-c", script]).unwrap();

    // The disk has the label that cloud-init looks for, and what was given.
    let read = "dd if=/dev/vdb bs=1 skip=43 count=11 2>/dev/null; \
                mkdir /seed && mount -t vfat -o ro /dev/vdb /seed && cat /seed/user-data";
    let said = inside(read);
    let wanted = "cidata     #cloud-config\nruncmd: [[echo, hello]]\n";
    assert_eq!(said.out, wanted, "{said:?}");
    let meta = inside("cat /seed/meta-data").out;
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    assert_eq!(meta["local-hostname"], "seeded");
    assert_eq!(meta["public-keys"][0], KEY);
    let shown = daemon.inspect("box").unwrap();
    assert_eq!(meta["instance-id"], shown["id"]);
    let network = inside("cat /seed/network-config").out;
    let network: serde_json::Value = serde_json::from_str(&network).unwrap();
    let card = &network["ethernets"]["net0"];
    let address = shown["addresses"][0].as_str().unwrap();
    let given = card["addresses"][0].as_str().unwrap();
    assert!(given.starts_with(&format!("{address}/")), "{network:#}");
    let mac = inside("cat /sys/class/net/eth0/address").out;
    assert_eq!(card["match"]["macaddress"], mac.trim());
    assert_ne!(inside("echo x > /dev/vdb").code, 0, "a seed is only read");

    // Without cloud-init in the image, the agent lets the keys in: once, however often it starts.
    let authorized = "stat -c %a /root/.ssh/authorized_keys; cat /root/.ssh/authorized_keys";
    assert_eq!(inside(authorized).out, format!("600\n{KEY}\n"));
    daemon.berth(&["restart", "box"]).unwrap();
    assert_eq!(inside(authorized).out, format!("600\n{KEY}\n"));
    daemon.berth(&["rm", "-f", "box"]).unwrap();

    // What makes no sense is refused by the name of its field.
    let broken = file("broken.pub", "ssh-ed25519 AAAA\n");
    for (flags, field) in [
        (&["--ssh-key", &broken[..]][..], "machine.ssh_keys[0]"),
        (
            &["--ssh-key", &key, "--ssh-user", "No Body"],
            "machine.ssh_user",
        ),
    ] {
        let run = ["run", "-d", "--vm"];
        let said = daemon
            .run(&[&run[..], flags, &["busybox", "true"]].concat())
            .unwrap();
        assert_ne!(said.code, 0);
        assert!(said.err.contains(field), "{}", said.err);
    }
}
