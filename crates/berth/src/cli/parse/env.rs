//! Environment variables for a program: from the command line, from ours, from a file.

use std::path::Path;

/// One `--env` value: `KEY=value`, or `KEY` for the value it has here. `None` when it has none
/// here: then it is not set inside either.
pub fn variable(text: &str) -> Result<Option<(String, String)>, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if key.is_empty() || key.contains('\0') {
        return Err(
            "an environment variable needs a name: write KEY=VALUE, or KEY to pass it on".into(),
        );
    }
    Ok(value.map(|value| (key.to_owned(), value)))
}

/// Reads a file with one `KEY=value` or `KEY` a line; empty lines and those that start with `#`
/// do not count. Values are taken as they are: no quotes, no expansion.
pub fn read_file(path: &Path) -> Result<Vec<(String, String)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!(
            "the environment file {} cannot be read: {error}",
            path.display()
        )
    })?;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match variable(line) {
            Ok(pair) => found.extend(pair),
            Err(why) => return Err(format!("{}:{}: {why}", path.display(), index + 1)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_text_or_from_here() {
        let pair = |k: &str, v: &str| Some((k.to_owned(), v.to_owned()));
        assert_eq!(variable("A=b=c").unwrap(), pair("A", "b=c"));
        assert_eq!(variable("A=").unwrap(), pair("A", ""));
        assert_eq!(variable("BERTH_TEST_SURELY_UNSET").unwrap(), None);
        let path = std::env::var("PATH").unwrap();
        assert_eq!(variable("PATH").unwrap(), pair("PATH", &path));
        assert!(variable("=x").is_err());
        assert!(variable("").is_err());
    }

    #[test]
    fn a_file_says_which_line_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# note\n\nA=1\n  B=two words \n").unwrap();
        let read = read_file(&path).unwrap();
        assert_eq!(read[1], ("B".to_owned(), "two words ".to_owned()));
        std::fs::write(&path, "A=1\n=2\n").unwrap();
        assert!(read_file(&path).unwrap_err().contains("env:2:"));
    }
}
