//! Completion in the shell.

use crate::{fake::Fake, session_text::berth};

/// What bash would offer for the last of the words.
fn offered(fake: &Fake, words: &[&str]) -> Vec<String> {
    let index = (words.len() - 1).to_string();
    let output = berth(fake, &[&["--"], words].concat())
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", index)
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "true")
        .env("_CLAP_IFS", "\n")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn names_that_exist_are_offered() {
    let fake = Fake::start();
    fake.instance("web-1", "running");
    fake.instance("db", "running");
    assert_eq!(offered(&fake, &["berth", "stop", "we"]), ["web-1"]);
    assert_eq!(
        offered(&fake, &["berth", "network", "show", "ba"]),
        ["back"]
    );
    assert_eq!(offered(&fake, &["berth", "run", "deb"]), ["debian:12"]);
    assert!(offered(&fake, &["berth", "lau"]).contains(&"launch".to_owned()));
    // Without a daemon there are no names, and no error either.
    let output = berth(&fake, &["--", "berth", "stop", "we"])
        .env("BERTH_HOST", "unix:///nonexistent")
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "2")
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn every_shell_gets_its_script() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish"] {
        let output = berth(&fake, &["completion", shell]).output().unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("COMPLETE")
        );
    }
    let script = berth(&fake, &["completion", "bash"])
        .output()
        .unwrap()
        .stdout;
    let path = fake.home().join("completion");
    std::fs::write(&path, script).unwrap();
    let checked = std::process::Command::new("bash")
        .arg("-n")
        .arg(path)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}
