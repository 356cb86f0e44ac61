//! Runs the command as a user would, and writes down what they see.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::fake::Fake;

/// The command with nothing of this machine's environment but what a test gives it.
pub fn berth(fake: &Fake, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", fake.home())
        .env("BERTH_HOST", fake.host())
        .current_dir(fake.home())
        .stdin(Stdio::null())
        .args(words);
    command
}

/// Runs to the end, with something on stdin.
pub fn run(fake: &Fake, words: &[&str], stdin: &str) -> Output {
    let mut child = berth(fake, words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that does not read it may be gone already.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    child.wait_with_output().unwrap()
}

/// A session: each line is a command; what it prints, with `! ` before what goes to stderr, and
/// its exit code when it is not 0.
pub fn session(fake: &Fake, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let output = run(fake, &words, "");
        let _ = writeln!(text, "$ berth {line}");
        text.push_str(&String::from_utf8(output.stdout).unwrap());
        for line in String::from_utf8(output.stderr).unwrap().lines() {
            let _ = writeln!(text, "! {line}");
        }
        match output.status.code() {
            Some(0) => {}
            Some(code) => {
                let _ = writeln!(text, "[exit {code}]");
            }
            None => {
                let _ = writeln!(text, "[{}]", output.status);
            }
        }
        text.push('\n');
    }
    // What differs from run to run.
    mask_times(&text)
        .replace(fake.home().to_str().unwrap(), "HOME")
        .lines()
        .map(|line| match line.find("ready in ") {
            Some(at) => format!(
                "{}ready in N s   {}",
                &line[..at],
                line.rsplit(' ').next().unwrap()
            ),
            None => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Compares a session with the one in `sessions/NAME.txt`.
pub fn compare(name: &str, found: &str) {
    let path = format!(
        "{}/tests/cli/sessions/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    if found != wanted {
        let differs = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
        let at = differs.unwrap_or_else(|| found.lines().count().min(wanted.lines().count()));
        panic!(
            "sessions/{name}.txt differs from line {}:\n  now    {:?}\n  before {:?}\n\
             if this is meant: BERTH_BLESS=1 cargo test -p berth --test cli, and read the difference",
            at + 1,
            found.lines().nth(at),
            wanted.lines().nth(at)
        );
    }
}

/// Puts `TIME` in place of every moment in RFC 3339 with milliseconds.
fn mask_times(text: &str) -> String {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00.000Z";
    let is_time = |window: &[u8]| {
        window.iter().zip(SHAPE).all(|(found, shape)| match shape {
            b'0' => found.is_ascii_digit(),
            shape => found == shape,
        })
    };
    let mut masked = text.to_owned();
    while let Some(at) = masked.as_bytes().windows(SHAPE.len()).position(is_time) {
        masked.replace_range(at..at + SHAPE.len(), "TIME");
    }
    masked
}
