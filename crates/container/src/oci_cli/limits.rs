//! `update`: limits from options or from a JSON object.

use std::io::Read as _;
use std::path::Path;

use super::{Call, Exit, Result};
use crate::bundle::{self, MAX_CONFIG_BYTES};
use crate::spec::{BlockIo, Cpu, Memory, Pids, Resources};

/// `update`.
pub(super) fn update(call: &Call) -> Result<Exit> {
    let container = call.container()?;
    let resources = match call.parsed.values.get("resources") {
        Some("-") => from_stdin()?,
        Some(path) => bundle::read_json(Path::new(path))?,
        None => from_options(call)?,
    };
    if resources == Resources::default() {
        return Err("update: no limit was given; see update --help".into());
    }
    container.update(&resources)?;
    Ok(Exit::SUCCESS)
}

fn from_stdin() -> Result<Resources> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_CONFIG_BYTES)
        .read_to_end(&mut bytes)?;
    bundle::parse(&bytes)
        .map_err(|(field, error)| format!("standard input: field `{field}`: {error}").into())
}

fn from_options(call: &Call) -> Result<Resources> {
    let values = &call.parsed.values;
    let bytes = |name: &str| values.get(name).map(|text| size(name, text)).transpose();
    let memory = Memory {
        limit: bytes("memory")?,
        reservation: bytes("memory-reservation")?,
        swap: bytes("memory-swap")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: values.number("cpu-share")?,
        quota: values.number("cpu-quota")?,
        burst: values.number("cpu-burst")?,
        period: values.number("cpu-period")?,
        cpus: values.get("cpuset-cpus").unwrap_or_default().to_owned(),
        mems: values.get("cpuset-mems").unwrap_or_default().to_owned(),
        idle: values.number("cpu-idle")?,
        ..Cpu::default()
    };
    let block = BlockIo {
        weight: values.number("blkio-weight")?,
        ..BlockIo::default()
    };
    let pids = Pids {
        limit: values.number("pids-limit")?,
    };
    Ok(Resources {
        memory: given(memory),
        cpu: given(cpu),
        block_io: given(block),
        pids: given(pids),
        ..Resources::default()
    })
}

fn given<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Bytes, plain or with a unit of 1024 (`512M`); -1 is no limit.
fn size(name: &str, text: &str) -> Result<i64> {
    let unit = text
        .trim_end_matches(['b', 'B'])
        .chars()
        .last()
        .filter(char::is_ascii_alphabetic);
    let factor: i64 = match unit.map(|c| c.to_ascii_lowercase()) {
        None => 1,
        Some('k') => 1 << 10,
        Some('m') => 1 << 20,
        Some('g') => 1 << 30,
        Some('t') => 1 << 40,
        Some(_) => 0,
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    digits
        .parse::<i64>()
        .ok()
        .filter(|_| factor > 0)
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("--{name}: {text:?} is not a size such as 512M").into())
}
