//! The commands and options as data, and the texts made of them.

use super::args::{Command, Opt};
use crate::spec::OCI_VERSION;

const fn switch(long: &'static str, short: Option<char>, help: &'static str) -> Opt {
    Opt {
        long,
        short,
        value: None,
        help,
    }
}

const fn valued(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        short,
        value: Some(value),
        help,
    }
}

/// Options before the command.
pub(crate) const GLOBALS: &[Opt] = &[
    valued("root", None, "DIR", "where the state of containers is kept"),
    valued(
        "log",
        None,
        "FILE",
        "write messages there instead of to standard error",
    ),
    valued("log-format", None, "FORMAT", "text (default) or json"),
    valued("log-level", None, "LEVEL", "error, warning or debug"),
    switch("debug", None, "say more"),
    switch(
        "systemd-cgroup",
        None,
        "accepted; groups are made in the file system in any case",
    ),
    valued(
        "cgroup-manager",
        None,
        "NAME",
        "accepted; groups are made in the file system in any case",
    ),
    switch("rootless", None, "accepted; found out by itself"),
    switch("version", Some('v'), "print the version"),
    switch("help", Some('h'), "print this help"),
];

const BUNDLE: Opt = valued(
    "bundle",
    Some('b'),
    "DIR",
    "the bundle; the current directory by default",
);
const CONFIG: Opt = valued(
    "config",
    Some('f'),
    "FILE",
    "configuration instead of config.json",
);
const CONSOLE: Opt = valued(
    "console-socket",
    None,
    "SOCKET",
    "unix socket that receives the terminal's master",
);
const PID_FILE: Opt = valued("pid-file", None, "FILE", "write the process id there");
const NO_PIVOT: Opt = switch(
    "no-pivot",
    None,
    "move the root instead of pivoting (initramfs hosts)",
);
const NO_KEYRING: Opt = switch("no-new-keyring", None, "keep the caller's session keyring");
const PRESERVE: Opt = valued(
    "preserve-fds",
    None,
    "N",
    "let the process inherit descriptors 3 to 2+N",
);
const FORMAT: Opt = valued("format", Some('f'), "FORMAT", "table (default) or json");

/// Every command.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        name: "create",
        usage: "CONTAINER",
        summary: "make a container whose process waits for start",
        about: "Sets up namespaces, mounts and limits of the bundle's config.json. The program runs\nwhen `start` is called.",
        options: &[
            BUNDLE, CONFIG, CONSOLE, PID_FILE, NO_PIVOT, NO_KEYRING, PRESERVE,
        ],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "start",
        usage: "CONTAINER",
        summary: "run the program of a created container",
        about: "Returns when the program runs, or says why it does not.",
        options: &[],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "run",
        usage: "CONTAINER",
        summary: "create, start, wait and delete in one",
        about: "Passes signals on and ends with the program's exit status (128 + N if signal N killed it).",
        options: &[
            BUNDLE,
            CONFIG,
            CONSOLE,
            PID_FILE,
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
            switch("detach", Some('d'), "return when the program runs"),
            switch(
                "keep",
                None,
                "do not delete the container when the program ends",
            ),
        ],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "exec",
        usage: "CONTAINER COMMAND [ARG...]",
        summary: "run one more program in a running container",
        about: "The program and its arguments come after the id, or from --process.",
        options: &[
            CONSOLE,
            valued("cwd", None, "DIR", "working directory"),
            valued(
                "env",
                Some('e'),
                "KEY=VALUE",
                "add to the environment (repeatable)",
            ),
            switch("tty", Some('t'), "give it a terminal"),
            valued("user", Some('u'), "UID[:GID]", "run as these ids"),
            valued(
                "additional-gids",
                Some('g'),
                "GID",
                "add a supplementary group (repeatable)",
            ),
            valued(
                "process",
                Some('p'),
                "FILE",
                "read a whole process description (JSON)",
            ),
            switch("detach", Some('d'), "return when the program runs"),
            PID_FILE,
            valued("process-label", None, "LABEL", "SELinux label"),
            valued("apparmor", None, "PROFILE", "AppArmor profile"),
            switch("no-new-privs", None, "forbid gaining privileges"),
            valued("cap", Some('c'), "CAP", "add a capability (repeatable)"),
            PRESERVE,
            valued(
                "cgroup",
                None,
                "PATH",
                "group below the container's to run in",
            ),
            switch(
                "ignore-paused",
                None,
                "wait for a paused container to be resumed, instead of failing",
            ),
            NO_KEYRING,
        ],
        positionals: (1, usize::MAX),
        trailing: true,
    },
    Command {
        name: "state",
        usage: "CONTAINER",
        summary: "print a container's state as JSON",
        about: "As the specification has it, with more fields as runc prints them.",
        options: &[],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "kill",
        usage: "CONTAINER [SIGNAL]",
        summary: "send a signal to a container (TERM by default)",
        about: "SIGNAL is a name, with or without SIG, or a number.",
        options: &[
            switch("all", Some('a'), "to every process of the container"),
            valued("signal", Some('s'), "SIGNAL", "as the second argument"),
            valued("regex", Some('r'), "", "not supported"),
        ],
        positionals: (1, 2),
        trailing: false,
    },
    Command {
        name: "delete",
        usage: "CONTAINER",
        summary: "remove a stopped container",
        about: "Removes its control group and state, and runs its poststop hooks.",
        options: &[switch(
            "force",
            Some('f'),
            "kill it first; it is no error if it does not exist",
        )],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "list",
        usage: "",
        summary: "list containers",
        about: "",
        options: &[FORMAT, switch("quiet", Some('q'), "ids only")],
        positionals: (0, 0),
        trailing: false,
    },
    Command {
        name: "ps",
        usage: "CONTAINER [PS-OPTION...]",
        summary: "list a container's processes",
        about: "As a table through ps(1), or as a JSON list of process ids.",
        options: &[FORMAT],
        positionals: (1, usize::MAX),
        trailing: true,
    },
    Command {
        name: "pause",
        usage: "CONTAINER",
        summary: "freeze all processes of a container",
        about: "",
        options: &[],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "resume",
        usage: "CONTAINER",
        summary: "let a frozen container go on",
        about: "",
        options: &[],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "update",
        usage: "CONTAINER",
        summary: "change limits of a container",
        about: "What is not given stays as it is. With --resources FILE (or -), the whole linux.resources object.",
        options: &[
            valued(
                "resources",
                Some('r'),
                "FILE",
                "JSON of linux.resources; - reads standard input",
            ),
            valued("memory", Some('m'), "BYTES", "memory limit; -1 is none"),
            valued("memory-reservation", None, "BYTES", "soft memory limit"),
            valued(
                "memory-swap",
                None,
                "BYTES",
                "memory and swap together; -1 is none",
            ),
            valued("cpu-period", None, "US", "length of a scheduling period"),
            valued(
                "cpu-quota",
                None,
                "US",
                "processor time per period; -1 is no limit",
            ),
            valued(
                "cpu-burst",
                None,
                "US",
                "processor time that may be saved up",
            ),
            valued("cpu-share", None, "N", "relative weight"),
            valued("cpu-idle", None, "0|1", "run only when nobody else does"),
            valued("cpuset-cpus", None, "LIST", "processors allowed"),
            valued("cpuset-mems", None, "LIST", "memory nodes allowed"),
            valued("blkio-weight", None, "N", "block device weight, 10 to 1000"),
            valued("pids-limit", None, "N", "most tasks; -1 is no limit"),
        ],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "events",
        usage: "CONTAINER",
        summary: "print usage as JSON lines",
        about: "One line every interval until the container stops, or one with --stats.",
        options: &[
            valued("interval", None, "SECONDS", "pause between lines (5s)"),
            switch("stats", None, "print one line and end"),
        ],
        positionals: (1, 1),
        trailing: false,
    },
    Command {
        name: "features",
        usage: "",
        summary: "print what this runtime can do as JSON",
        about: "",
        options: &[],
        positionals: (0, 0),
        trailing: false,
    },
    Command {
        name: "spec",
        usage: "",
        summary: "write a config.json to start from",
        about: "",
        options: &[
            BUNDLE,
            switch("rootless", None, "for a user without privileges"),
        ],
        positionals: (0, 0),
        trailing: false,
    },
];

/// Finds a command by name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The command most like a mistyped one.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    COMMANDS
        .iter()
        .map(|command| (distance(name, command.name), command.name))
        .min()
        .filter(|(far, _)| *far <= 2)
        .map(|(_, name)| name)
}

/// Edits from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(32).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The version, in the form that callers of runtimes parse.
pub(crate) fn version() -> String {
    format!(
        "berth-oci version {}\nspec: {OCI_VERSION}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// All commands.
pub(crate) fn overview(program: &str) -> String {
    let mut text = format!(
        "{program}: runs containers from OCI bundles (runtime specification {OCI_VERSION})\n\n\
         Usage: {program} [GLOBAL OPTION...] COMMAND [OPTION...] [ARGUMENT...]\n\nCommands:\n"
    );
    for command in COMMANDS {
        text.push_str(&format!("  {:<10}{}\n", command.name, command.summary));
    }
    text.push_str("\nGlobal options:\n");
    GLOBALS.iter().for_each(|opt| text.push_str(&line(opt)));
    text.push_str(&format!(
        "\nSee {program} COMMAND --help for a command's options.\n"
    ));
    text
}

/// One command.
pub(crate) fn command(program: &str, command: &Command) -> String {
    let options = if command.options.is_empty() {
        ""
    } else {
        "[OPTION...] "
    };
    let mut text = format!(
        "{program} {}: {}\n\nUsage: {program} {} {options}{}\n",
        command.name, command.summary, command.name, command.usage
    );
    if !command.about.is_empty() {
        text.push_str(&format!("\n{}\n", command.about));
    }
    if !command.options.is_empty() {
        text.push_str("\nOptions:\n");
        command
            .options
            .iter()
            .for_each(|opt| text.push_str(&line(opt)));
    }
    text
}

fn line(opt: &Opt) -> String {
    let short = opt
        .short
        .map(|c| format!("-{c}, "))
        .unwrap_or_else(|| "    ".into());
    let value = opt
        .value
        .map(|value| format!(" {value}"))
        .unwrap_or_default();
    format!(
        "  {short}{:<28}{}\n",
        format!("--{}{value}", opt.long),
        opt.help
    )
}
