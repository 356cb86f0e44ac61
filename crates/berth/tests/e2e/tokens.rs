//! Another host's way in: TLS, tokens with scopes, and their end.

use testkit::{Daemon, Said};

use crate::common::idle;

const ADDRESS: &str = "127.0.0.1:7443";

/// A command in the daemon's namespace over TCP.
fn remote(daemon: &Daemon, token: &str, fingerprint: &str, words: &[&str]) -> Said {
    let mut command = daemon.netns().command(crate::common::BERTH);
    command
        .args(words)
        .env("BERTH_HOST", format!("https://{ADDRESS}"));
    command
        .env("BERTH_TOKEN", token)
        .env("BERTH_FINGERPRINT", fingerprint);
    Said::of(&command.output().unwrap())
}

#[test]
fn tokens_open_as_much_as_their_scope_until_they_are_revoked() {
    let Some(mut daemon) = idle("tokens_open_as_much", &["--listen", ADDRESS]) else {
        return;
    };
    daemon.restart().unwrap();
    let log = daemon.log();
    let from = log.find("sha256:").expect("the log has the fingerprint");
    let fingerprint: String = log[from..]
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == ':')
        .collect();
    let token = |name: &str, scope: &str| {
        let said = daemon
            .berth(&["token", "create", name, "--scope", scope])
            .unwrap();
        said.lines().next().unwrap().trim().to_owned()
    };
    let (read, operate, admin) = (
        token("r", "read"),
        token("o", "operate"),
        token("a", "admin"),
    );
    let ask = |token: &str, words: &[&str]| remote(&daemon, token, &fingerprint, words);
    let denied = 5;
    assert_eq!(ask(&read, &["list"]).code, 0, "{:?}", ask(&read, &["list"]));
    assert_eq!(
        ask(&read, &["run", "-d", "--name", "no", "busybox", "true"]).code,
        denied
    );
    let run = ask(&operate, &["run", "--rm", "busybox", "echo", "over TLS"]);
    assert_eq!((run.code, run.out.as_str()), (0, "over TLS\n"), "{run:?}");
    assert_eq!(ask(&operate, &["token", "list"]).code, denied);
    assert_eq!(ask(&admin, &["token", "list"]).code, 0);
    assert_eq!(ask("", &["list"]).code, denied);
    assert_eq!(
        ask("bt_0000000000000000000000000000000000000000000", &["list"]).code,
        denied
    );
    let other = remote(
        &daemon,
        &read,
        &format!("sha256:{}", "0".repeat(64)),
        &["list"],
    );
    assert!(
        other.code != 0 && other.err.contains(&fingerprint),
        "{other:?}"
    );

    daemon.berth(&["token", "rm", "o"]).unwrap();
    assert_eq!(ask(&operate, &["list"]).code, denied);
    // Only hashes are kept.
    let database = std::fs::read(daemon.root().join("berth.db")).unwrap();
    let log = std::fs::read(daemon.root().join("berth.db-wal")).unwrap_or_default();
    for place in [database, log, daemon.log().into_bytes()] {
        assert!(
            !place
                .windows(read.len())
                .any(|window| window == read.as_bytes())
        );
    }
    // They outlive the daemon, and so does its certificate.
    daemon.kill();
    daemon.restart().unwrap();
    assert_eq!(remote(&daemon, &admin, &fingerprint, &["list"]).code, 0);
    assert_eq!(
        remote(&daemon, &operate, &fingerprint, &["list"]).code,
        denied
    );
}
