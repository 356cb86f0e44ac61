//! `berth-vmm block`: how the software CPU translates one block of code, for people.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use cpu::soft::{Width, translate::view};
use vmm::boot::Elf;

use crate::Failure;

/// The largest file that is taken for a kernel.
const MAX_FILE: u64 = 256 << 20;
/// Bytes of a kernel that are looked at: more than any block has.
const LENGTH: u64 = 4096;
/// Where code is said to lie when nothing is said.
const USUAL_ADDRESS: u64 = 0x40_0000;

/// The output has three parts. The guest's instructions, each with its plan: copied as it is;
/// rewritten, as its registers are elsewhere on the host; address looked up in the TLB, with the
/// interpreter's handler as the slow path; guarded, with that slow path for other reasons; handler
/// called always; left out; exit; or interpreted, as all code but 64-bit code. Where it leads. And
/// the host's code.
#[derive(Args)]
pub struct Arguments {
    /// The code, as hexadecimal digits
    #[arg(
        value_name = "HEX",
        required_unless_present = "kernel",
        conflicts_with = "kernel"
    )]
    code: Vec<String>,
    /// Which mode the code runs in, in bits
    #[arg(long, value_enum, default_value_t = Mode::Bits64)]
    mode: Mode,
    /// Where it lies; of code that is given, 0x400000 when not given
    #[arg(long, value_name = "ADDRESS", value_parser = address, required_unless_present = "code")]
    address: Option<u64>,
    /// Take the code from a kernel, bzImage or vmlinux, at an address that it knows itself by
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// It is code of a user, not of the supervisor
    #[arg(long)]
    user: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    #[value(name = "16")]
    Bits16,
    #[value(name = "32")]
    Bits32,
    #[value(name = "64")]
    Bits64,
}

/// Shows the block.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let address = arguments.address.unwrap_or(USUAL_ADDRESS);
    let bytes = match &arguments.kernel {
        Some(path) => from_kernel(path, address)?,
        None => parse(&arguments.code.concat())?,
    };
    let view = view::view(view::Request {
        bytes: &bytes,
        address,
        width: match arguments.mode {
            Mode::Bits16 => Width::Code16,
            Mode::Bits32 => Width::Code32,
            Mode::Bits64 => Width::Code64,
        },
        user: arguments.user,
    })?;
    match write!(io::stdout().lock(), "{view}") {
        // Whoever read it has enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => Ok(written.map(|()| ExitCode::SUCCESS)?),
    }
}

/// A number, in hexadecimal with or without `0x`.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.trim_start_matches("0x");
    u64::from_str_radix(digits, 16).map_err(|_| format!("{text:?} is no hexadecimal number"))
}

/// Bytes from pairs of digits; spaces, commas and `0x` are as good as nothing.
fn parse(text: &str) -> Result<Vec<u8>, String> {
    let text = text.replace("0x", "");
    let digits: Vec<char> = text
        .chars()
        .filter(|it| !it.is_whitespace() && *it != ',')
        .collect();
    let byte = |pair: &[char]| -> Option<u8> {
        let [high, low] = pair else { return None };
        let value = high.to_digit(16)? << 4 | low.to_digit(16)?;
        u8::try_from(value).ok()
    };
    digits
        .chunks(2)
        .map(|pair| {
            byte(pair).ok_or_else(|| {
                let text: String = pair.iter().collect();
                format!("{text:?} is no byte; give two hexadecimal digits for each, as 48 89 d8")
            })
        })
        .collect()
}

fn from_kernel(path: &Path, address: u64) -> Result<Vec<u8>, Failure> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut file = Vec::new();
    std::fs::File::open(path)
        .and_then(|it| it.take(MAX_FILE + 1).read_to_end(&mut file))
        .map_err(|error| told(&error))?;
    if file.len() as u64 > MAX_FILE {
        return Err(told(&"it is too large for a kernel").into());
    }
    if let Some(unpacked) = bzimage::vmlinux(&file).map_err(|error| told(&error))? {
        file = unpacked;
    }
    let elf = Elf::parse(file.as_slice()).map_err(|error| told(&error))?;
    let code = elf.segments.iter().find_map(|it| {
        let into = address.checked_sub(it.linear)?;
        let length = it.file_bytes.checked_sub(into)?.min(LENGTH);
        let start = usize::try_from(it.offset + into).ok()?;
        file.get(start..start + usize::try_from(length).ok()?)
    });
    let nothing = format!("it has nothing at {address:#x}; its own addresses are asked for");
    let code = code.filter(|it| !it.is_empty());
    Ok(code.ok_or_else(|| told(&nothing))?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_as_disassemblers_and_debuggers_print_them() {
        for text in ["4889d8c3", "48 89 d8 c3", "0x48,0x89, 0xD8, 0xc3"] {
            assert_eq!(parse(text), Ok(vec![0x48, 0x89, 0xd8, 0xc3]), "{text}");
        }
        for wrong in ["4", "48 8", "mov", "48 xy"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(address("0xffffffff81000000"), Ok(0xffff_ffff_8100_0000));
        assert!(address("main").is_err());
    }

    #[test]
    fn code_of_a_kernel_is_found_by_its_own_address() {
        let mut elf = vec![0_u8; 64 + 56];
        elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        let header = [
            1 | 5 << 32,
            120,
            0xffff_ffff_8100_0000,
            0x100_0000,
            4,
            0x2000,
            0,
        ];
        for (number, value) in header.into_iter().enumerate() {
            let at = 64 + 8 * number;
            elf[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        elf.extend([0x90, 0x0f, 0x0b, 0xc3]);
        let path = std::env::temp_dir().join(format!("berth-block-{}", std::process::id()));
        std::fs::write(&path, elf).expect("a file");
        let found = from_kernel(&path, 0xffff_ffff_8100_0001);
        let physical = from_kernel(&path, 0x100_0000);
        let behind = from_kernel(&path, 0xffff_ffff_8100_0004);
        std::fs::remove_file(&path).expect("it was made");
        assert_eq!(found.expect("code"), [0x0f, 0x0b, 0xc3]);
        assert!(physical.is_err() && behind.is_err());
    }
}
