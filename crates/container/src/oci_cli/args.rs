//! The command line's grammar: a table of commands and options, and the parser over it.
//!
//! Hand-written, because every microsecond of a start counts and the grammar is small. Options may
//! stand before and after the id, as callers of runc and of crun both expect; only for commands that
//! end in a program's own words (`exec`) options stop at the first of them.

use super::help;

/// An option.
#[derive(Debug)]
pub(crate) struct Opt {
    /// Name after `--`.
    pub long: &'static str,
    /// Letter after `-`.
    pub short: Option<char>,
    /// What its value is called; `None` for a switch.
    pub value: Option<&'static str>,
    /// One line.
    pub help: &'static str,
}

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its positional arguments, as shown.
    pub usage: &'static str,
    /// One line.
    pub summary: &'static str,
    /// More, for its own help.
    pub about: &'static str,
    /// Its options.
    pub options: &'static [Opt],
    /// Fewest and most positional arguments.
    pub positionals: (usize, usize),
    /// Words after the first positional belong to a program.
    pub trailing: bool,
}

/// A command line, understood.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// What to do.
    pub command: &'static Command,
    /// Options of all commands.
    pub globals: Values,
    /// Options of this one.
    pub values: Values,
    /// The rest.
    pub positionals: Vec<String>,
}

/// Given options in order; switches have an empty value.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<(&'static str, String)>);

impl Values {
    /// The last value given.
    pub fn get(&self, long: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// All values given.
    pub fn all<'a>(&'a self, long: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub fn has(&self, long: &str) -> bool {
        self.get(long).is_some_and(|value| value != "false")
    }

    /// A value as a number.
    ///
    /// # Errors
    /// Names the option.
    pub fn number<T: std::str::FromStr>(&self, long: &str) -> Result<Option<T>, String> {
        self.get(long)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("--{long}: {text:?} is not a number it takes"))
            })
            .transpose()
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A command.
    Run(Box<Parsed>),
    /// Text for standard output.
    Show(String),
}

/// Understands a command line (without the program's name).
///
/// # Errors
/// Says what is wrong and where help is.
pub(crate) fn parse(program: &str, words: &[String]) -> Result<Asked, String> {
    let mut globals = Values::default();
    let mut at = 0;
    while let Some(word) = words
        .get(at)
        .filter(|word| word.starts_with('-') && word.len() > 1)
    {
        match word.as_str() {
            "--help" | "-h" => return Ok(Asked::Show(help::overview(program))),
            "--version" | "-v" => return Ok(Asked::Show(help::version())),
            _ => {
                at = option(help::GLOBALS, words, at, &mut globals)
                    .map_err(|why| format!("{why}; see {program} --help"))?
            }
        }
    }
    let Some(name) = words.get(at) else {
        return Ok(Asked::Show(help::overview(program)));
    };
    if name == "help" {
        return match words.get(at + 1).and_then(|name| help::find(name)) {
            Some(command) => Ok(Asked::Show(help::command(program, command))),
            None => Ok(Asked::Show(help::overview(program))),
        };
    }
    let command = help::find(name).ok_or_else(|| {
        let hint = help::nearest(name)
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        format!("unknown command {name:?}{hint} {program} --help lists them all")
    })?;
    let mut parsed = Parsed {
        command,
        globals,
        values: Values::default(),
        positionals: Vec::new(),
    };
    rest(&mut parsed, program, &words[at + 1..])
        .map(|help| match help {
            true => Asked::Show(help::command(program, command)),
            false => Asked::Run(Box::new(parsed)),
        })
        .map_err(|why| {
            format!(
                "{}: {why}; see {program} {} --help",
                command.name, command.name
            )
        })
}

/// Parses what follows the command's name; true if help was asked for.
fn rest(parsed: &mut Parsed, program: &str, words: &[String]) -> Result<bool, String> {
    let _ = program;
    let mut at = 0;
    let mut options = true;
    while let Some(word) = words.get(at) {
        let is_option = options && word.starts_with('-') && word.len() > 1;
        match word.as_str() {
            "--" if options => {
                options = false;
                at += 1;
            }
            "--help" | "-h" if is_option => return Ok(true),
            _ if is_option => at = option(parsed.command.options, words, at, &mut parsed.values)?,
            _ => {
                parsed.positionals.push(word.clone());
                at += 1;
                if parsed.command.trailing {
                    options = false;
                }
            }
        }
    }
    let (fewest, most) = parsed.command.positionals;
    let given = parsed.positionals.len();
    if given < fewest {
        return Err(format!("it needs {}", parsed.command.usage));
    }
    if given > most {
        return Err(format!(
            "it takes {}, and {:?} is more",
            parsed.command.usage, parsed.positionals[most]
        ));
    }
    Ok(false)
}

/// Parses one option word (which may hold several letters) and returns where to go on.
fn option(
    known: &'static [Opt],
    words: &[String],
    at: usize,
    values: &mut Values,
) -> Result<usize, String> {
    let word = &words[at];
    if let Some(long) = word.strip_prefix("--") {
        let (name, inline) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        let opt = known
            .iter()
            .find(|opt| opt.long == name)
            .ok_or_else(|| format!("unknown option --{name}"))?;
        return take(opt, inline, words, at, values);
    }
    let letters: Vec<char> = word.chars().skip(1).collect();
    for (i, letter) in letters.iter().enumerate() {
        let opt = known
            .iter()
            .find(|opt| opt.short == Some(*letter))
            .ok_or_else(|| format!("unknown option -{letter}"))?;
        if opt.value.is_some() {
            let inline: String = letters[i + 1..].iter().collect();
            let inline = inline
                .strip_prefix('=')
                .map(str::to_owned)
                .unwrap_or(inline);
            let inline = Some(inline).filter(|text| !text.is_empty());
            return take(opt, inline, words, at, values);
        }
        values.0.push((opt.long, String::new()));
    }
    Ok(at + 1)
}

fn take(
    opt: &'static Opt,
    inline: Option<String>,
    words: &[String],
    at: usize,
    values: &mut Values,
) -> Result<usize, String> {
    match (opt.value, inline) {
        (None, Some(text)) if matches!(text.as_str(), "true" | "false") => {
            values.0.push((opt.long, text));
            Ok(at + 1)
        }
        // `--rootless` and `--rootless=auto` are both in use.
        (None, Some(text)) if opt.long == "rootless" => {
            values.0.push((opt.long, text));
            Ok(at + 1)
        }
        (None, Some(text)) => Err(format!(
            "--{} is a switch and takes no value ({text:?})",
            opt.long
        )),
        (None, None) => {
            values.0.push((opt.long, String::new()));
            Ok(at + 1)
        }
        (Some(_), Some(text)) => {
            values.0.push((opt.long, text));
            Ok(at + 1)
        }
        (Some(name), None) => match words.get(at + 1) {
            Some(text) => {
                values.0.push((opt.long, text.clone()));
                Ok(at + 2)
            }
            None => Err(format!("--{} needs a value ({name})", opt.long)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Parsed, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse("berth-oci", &words)? {
            Asked::Run(parsed) => Ok(*parsed),
            Asked::Show(text) => Err(text),
        }
    }

    #[test]
    fn options_stand_before_and_after_the_id() {
        for line in [
            "--root /r create --bundle /b --pid-file=/p web",
            "--root=/r create web --bundle /b --pid-file /p",
            "--root /r create -b /b web --pid-file /p",
        ] {
            let parsed = run(line).unwrap();
            assert_eq!(parsed.globals.get("root"), Some("/r"));
            assert_eq!(parsed.values.get("bundle"), Some("/b"));
            assert_eq!(parsed.values.get("pid-file"), Some("/p"));
            assert_eq!(parsed.positionals, ["web"]);
        }
    }

    #[test]
    fn the_words_of_an_executed_program_are_its_own() {
        let parsed = run("exec -t -e A=1 --env B=2 web ls -l --color").unwrap();
        assert_eq!(parsed.positionals, ["web", "ls", "-l", "--color"]);
        assert!(parsed.values.has("tty"));
        assert_eq!(parsed.values.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(
            run("crate x")
                .unwrap_err()
                .contains("did you mean `create`")
        );
        assert!(run("create").unwrap_err().contains("needs"));
        assert!(run("start a b").unwrap_err().contains("\"b\" is more"));
        assert!(run("start --nope a").unwrap_err().contains("--nope"));
        assert!(
            run("create --bundle")
                .unwrap_err()
                .contains("needs a value")
        );
        assert!(
            run("delete --force=maybe a")
                .unwrap_err()
                .contains("switch")
        );
    }
}
