//! Rows of text in columns.

use std::io::{self, Write};

use super::human;

/// How a cell looks on a terminal with colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// As is.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// In between.
    Busy,
    /// Needs attention.
    Bad,
    /// Less important.
    Dim,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Busy => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
        }
    }

    /// The text in this style.
    pub fn paint(self, text: &str, color: bool) -> String {
        if color && self != Self::Plain {
            format!("{}{text}\x1b[0m", self.code())
        } else {
            text.to_owned()
        }
    }
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in a style. Text that is empty shows as `-`.
    pub fn styled(text: impl AsRef<str>, style: Style) -> Self {
        let text = match text.as_ref() {
            "" => "-".to_owned(),
            text => human::clean(text),
        };
        Self { text, style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

/// Writes rows in columns as wide as their widest cell. The last column is not padded.
pub fn write(
    out: &mut dyn Write,
    header: Option<&[&str]>,
    rows: &[Vec<Cell>],
    color: bool,
) -> io::Result<()> {
    let columns = rows
        .iter()
        .map(Vec::len)
        .chain(header.map(<[_]>::len))
        .max();
    let mut widths = vec![0; columns.unwrap_or(0)];
    let header: Option<Vec<Cell>> = header.map(|titles| titles.iter().map(Cell::from).collect());
    for row in header.iter().chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    for row in header.iter().chain(rows) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(&cell.style.paint(&cell.text, color));
            if index + 1 < row.len() {
                let padding = width - cell.text.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', padding));
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Writes `label: value` lines with the values under each other; empty values are left out.
pub fn write_pairs(out: &mut dyn Write, pairs: &[(&str, String)]) -> io::Result<()> {
    let width = pairs.iter().map(|(label, _)| label.chars().count()).max();
    for (label, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        let width = width.unwrap_or(0) + 1;
        for (index, line) in value.lines().enumerate() {
            let label = if index == 0 {
                format!("{label}:")
            } else {
                String::new()
            };
            writeln!(out, "{label:width$} {}", human::clean(line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let rows = vec![
            vec![
                Cell::from("web"),
                Cell::styled("running", Style::Good),
                Cell::from(""),
            ],
            vec![
                Cell::from("ünï\x07"),
                Cell::styled("failed", Style::Bad),
                Cell::from("x"),
            ],
        ];
        let text = |color| {
            let mut out = Vec::new();
            write(&mut out, Some(&["NAME", "STATUS", "IP"]), &rows, color).unwrap();
            String::from_utf8(out).unwrap()
        };
        let plain = "NAME  STATUS   IP\nweb   running  -\nünï\u{fffd}  failed   x\n";
        assert_eq!(text(false), plain);
        let bare = ["\x1b[32m", "\x1b[31m", "\x1b[0m"]
            .iter()
            .fold(text(true), |text, code| text.replace(code, ""));
        assert_eq!(bare, plain);
    }
}
