//! Signal names and numbers.

/// Names in the order of their numbers on Linux (all architectures this program runs on).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The number of a signal given by name (with or without `SIG`), by number, or as `RTMIN+n`.
///
/// # Errors
/// Says that it is none.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    let unknown =
        || format!("{text:?} is not a signal; give a name such as TERM or a number up to 64");
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Ok(index as i32 + 1);
    }
    let relative = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.parse::<i32>().ok()
        }
    };
    let number = match name {
        "IOT" => Some(libc::SIGABRT),
        "POLL" => Some(libc::SIGIO),
        "CLD" => Some(libc::SIGCHLD),
        _ => match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => relative(rest).map(|n| 34 + n),
            (_, Some(rest)) => relative(rest).map(|n| 64 + n),
            _ => None,
        },
    };
    number
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn every_common_spelling_works() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(number));
        }
        for text in ["", "SIG", "NOPE", "65", "-1", "RTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
