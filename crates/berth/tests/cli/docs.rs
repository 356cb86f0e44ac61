//! docs/cli.md and the manual pages are what the command says of itself.

use crate::{fake::Fake, session_text::berth};

const BEGIN: &str = "<!-- generated: BERTH_BLESS=1 cargo test -p berth --test cli docs -->\n";
const END: &str = "<!-- end of the generated part -->\n";

fn help(fake: &Fake, words: &[&str]) -> String {
    let output = berth(fake, &[&["help"], words].concat()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The short help of a command, without the flags that every command has.
fn short(fake: &Fake, words: &[&str]) -> String {
    let output = berth(fake, &[words, &["-h"]].concat()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let sections = text
        .split("\n\n")
        .filter(|section| !section.starts_with("Everywhere:"));
    let kept: Vec<_> = sections.map(str::trim_end).collect();
    kept.join("\n\n") + "\n"
}

/// The commands named in a help text, with what is said of each.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_reference_is_what_the_command_says() {
    let fake = Fake::start();
    let mut text = String::new();
    for topic in ["exit-codes", "environment"] {
        text.push_str(&format!("```text\n{}```\n\n", help(&fake, &[topic])));
    }
    for command in commands(&help(&fake, &[])) {
        let own = short(&fake, &[&command]);
        text.push_str(&format!("### berth {command}\n\n```text\n{own}```\n\n"));
        for verb in commands(&own) {
            let own = short(&fake, &[&command, &verb]);
            text.push_str(&format!(
                "### berth {command} {verb}\n\n```text\n{own}```\n\n"
            ));
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    let found = std::fs::read_to_string(path).unwrap();
    let (before, rest) = found
        .split_once(BEGIN)
        .expect("the mark of the generated part");
    let (_, after) = rest.split_once(END).expect("the end of the generated part");
    let wanted = format!("{before}{BEGIN}\n{text}{END}{after}");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    assert!(
        found == wanted,
        "docs/cli.md is old: run BERTH_BLESS=1 cargo test -p berth --test cli docs"
    );
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let fake = Fake::start();
    let pages = fake.home().join("man");
    let written = berth(&fake, &["man", pages.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    for command in commands(&help(&fake, &[])) {
        let page = std::fs::read_to_string(pages.join(format!("berth-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
}
