//! A block as text.

use std::fmt::{self, Display, Formatter};

use super::{Exit, Piece, Plan, Step, View};

/// Columns for bytes: those of most instructions fit.
const BYTES: usize = 24;
/// Columns for an instruction's text.
const TEXT: usize = 36;

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|it| format!("{it:02x}")).collect();
    bytes.join(" ")
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interpreted => "interpreted",
            Self::Handler => "handler called",
            Self::LeftOut => "left out",
            Self::Copied => "copied",
            Self::Rewritten => "rewritten",
            Self::LookedUp => "address looked up",
            Self::LookedUpWith(count) => {
                return write!(f, "address looked up for {count}");
            }
            Self::InRun => "with the one before",
            Self::Guarded => "guarded",
            Self::Exit => "exit",
            Self::Retpoline => "address looked up, then the jump it stands for",
        })
    }
}

impl Display for Exit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Near(target) => write!(f, "{target:#x}, in the page: linked"),
            Self::Distant(target) => {
                write!(f, "{target:#x}, in another page: by the table of targets")
            }
            Self::Computed => f.write_str("computed: by the table of targets"),
            Self::Handler => f.write_str("where the last handler leads"),
            Self::Interpreter => f.write_str("to the interpreter"),
        }
    }
}

impl View {
    /// The guest's code with the plan for each instruction, and where it leads: without the host's
    /// code.
    #[must_use]
    pub fn plan(&self) -> String {
        let length: usize = self.steps.iter().map(|it| it.bytes.len()).sum();
        let who = if self.user { "user" } else { "supervisor" };
        let mut text = format!(
            "{} instructions, {length} bytes of {}-bit code of the {who}\n",
            self.steps.len(),
            self.width.bits()
        );
        for (number, step) in self.steps.iter().enumerate() {
            text += &line_of(number, step);
        }
        for exit in &self.exits {
            text += &format!("  leads {exit}\n");
        }
        text
    }

    /// The host's code.
    #[must_use]
    pub fn translation(&self) -> String {
        let lines = || self.host.iter().flat_map(|it| &it.lines);
        let length: usize = lines().map(|it| it.bytes.len()).sum();
        if length == 0 {
            return "not translated: only 64-bit code is\n".to_owned();
        }
        let count = lines().count();
        let mut text = format!("{count} instructions, {length} bytes of the host\n");
        for piece in &self.host {
            text += &text_of(piece);
        }
        text
    }
}

fn line_of(number: usize, step: &Step) -> String {
    let flags = if step.keeps_flags { ", flags kept" } else { "" };
    format!(
        "{number:3}  {:x}  {:BYTES$} {:TEXT$} {}{flags}\n",
        step.address,
        hex(&step.bytes),
        step.text,
        step.plan
    )
}

fn text_of(piece: &Piece) -> String {
    let mut text = format!("{}\n", piece.name);
    for line in &piece.lines {
        text += &format!(
            "  {:4x}  {:BYTES$} {}\n",
            line.offset,
            hex(&line.bytes),
            line.text
        );
    }
    text
}

impl Display for View {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.plan(), self.translation())
    }
}
