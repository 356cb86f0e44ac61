//! Kernel modules: what each needs, and in which order they load.
//!
//! A distribution's package has modules without an index (`depmod` makes it at installation), so what a
//! module needs is read from the module itself: the `.modinfo` section of an ELF file, strings
//! `key=value`. Every offset is checked; nothing of a module is executed.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

/// A module larger than this is not one that a guest needs to boot.
const MAX_MODULE: u64 = 32 << 20;
/// Modules in one initramfs.
const MAX_MODULES: usize = 256;
/// Directories deep that modules lie.
const MAX_DEPTH: usize = 16;

/// What ends a signed module. See `scripts/sign-file.c`.
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// Bytes of `struct module_signature`, before the mark.
const SIGNATURE_INFO: usize = 12;

/// Finding or reading a module failed.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The kernel has no such module.
    #[error("the kernel package has no module {0}")]
    Missing(String),
    /// A file is no module, or a damaged one.
    #[error("{} is not a kernel module: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// More modules than any guest needs.
    #[error("the modules wanted need more than {MAX_MODULES} others")]
    TooMany,
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name as the kernel has it, with underscores.
    pub name: String,
    /// The ELF file, without its signature.
    pub content: Vec<u8>,
}

/// The modules of a kernel, by name.
pub(crate) struct Modules {
    paths: HashMap<String, PathBuf>,
    /// Those linked into the kernel.
    builtin: HashSet<String>,
}

impl Modules {
    /// Lists the modules below `directory`, which is the package's `/lib/modules/<release>`.
    pub(crate) fn read(directory: &Path) -> Result<Self, ModuleError> {
        let mut paths = HashMap::new();
        walk(directory, MAX_DEPTH, &mut paths)?;
        let builtin = directory.join("modules.builtin");
        let text = fs::read_to_string(&builtin).map_err(at(&builtin))?;
        let builtin = text.lines().filter_map(|line| name_of(Path::new(line)));
        Ok(Self {
            paths,
            builtin: builtin.collect(),
        })
    }

    /// The modules named and all they need, each after what it needs. One that is built in needs no
    /// loading and is left out.
    pub(crate) fn resolve(&self, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(&name.replace('-', "_"), true, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        needed: bool,
        seen: &mut HashSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if seen.len() > MAX_MODULES {
            return Err(ModuleError::TooMany);
        }
        let Some(path) = self.paths.get(name) else {
            return match needed {
                true => Err(ModuleError::Missing(name.to_owned())),
                false => Ok(()),
            };
        };
        let content = read(path)?;
        let info = ModuleInfo::read(&content).map_err(|reason| ModuleError::Malformed {
            path: path.clone(),
            reason,
        })?;
        for name in &info.before {
            self.visit(name, false, seen, order)?;
        }
        for name in &info.needs {
            self.visit(name, true, seen, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            content: unsigned(content),
        });
        Ok(())
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ModuleError {
    let path = path.to_owned();
    move |source| ModuleError::Io { path, source }
}

/// `virtio-rng.ko` and `virtio_rng.ko` are the module `virtio_rng`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn walk(
    directory: &Path,
    depth: usize,
    paths: &mut HashMap<String, PathBuf>,
) -> Result<(), ModuleError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(());
    };
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        let path = entry.path();
        // Of the entry itself: a link leads nowhere we want.
        let kind = entry.file_type().map_err(at(&path))?;
        if kind.is_dir() {
            walk(&path, depth, paths)?;
        } else if kind.is_file()
            && let Some(name) = name_of(&path)
        {
            paths.insert(name, path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let file = fs::File::open(path).map_err(at(path))?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_MODULE + 1), &mut content)
        .map_err(at(path))?;
    if content.len() as u64 > MAX_MODULE {
        let reason = "it is too large";
        let path = path.to_owned();
        return Err(ModuleError::Malformed { path, reason });
    }
    Ok(content)
}

/// A module without its appended signature.
///
/// Debian's kernels check a signature where there is one and accept a module without (the kernel notes it
/// as taint `E`); checking is arithmetic that takes more than half of the instructions of a boot. Whether
/// the modules are genuine is decided here, on the host, by apt's signatures.
fn unsigned(mut content: Vec<u8>) -> Vec<u8> {
    if let Some(signed) = content.strip_suffix(SIGNATURE_MARK)
        && let Some((rest, info)) = signed.split_last_chunk::<SIGNATURE_INFO>()
        && let [.., a, b, c, d] = *info
        && let Some(length) = rest
            .len()
            .checked_sub(u32::from_be_bytes([a, b, c, d]) as usize)
    {
        content.truncate(length);
    }
    content
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModuleInfo {
    /// Modules that have to be loaded before, or it cannot be.
    needs: Vec<String>,
    /// Modules to be loaded before, if there are any.
    before: Vec<String>,
}

impl ModuleInfo {
    fn read(elf: &[u8]) -> Result<Self, &'static str> {
        let mut info = Self::default();
        let section = section(elf, b".modinfo")?;
        for line in section.split(|&byte| byte == 0) {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            match line.split_once('=') {
                Some(("depends", names)) => {
                    let names = names.split(',').filter(|name| !name.is_empty());
                    info.needs.extend(names.map(|name| name.replace('-', "_")));
                }
                Some(("softdep", text)) => {
                    // `pre: a b post: c`; what comes after is of no use here.
                    let pre = text.split_once("pre:").map_or("", |(_, rest)| rest);
                    let pre = pre.split("post:").next().unwrap_or_default();
                    let names = pre.split_whitespace();
                    info.before.extend(names.map(|name| name.replace('-', "_")));
                }
                _ => {}
            }
        }
        Ok(info)
    }
}

/// Little-endian numbers at checked offsets.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(N)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte)),
    )
}

/// A section of a 64-bit little-endian ELF file by name. See `elf(5)`.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Result<&'a [u8], &'static str> {
    const CUT: &str = "it is cut short";
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit ELF file");
    }
    let field = |at| number::<2>(elf, at).ok_or(CUT);
    let table = number::<8>(elf, 0x28).ok_or(CUT)?;
    let (size, count, names) = (field(0x3a)?, field(0x3c)?, field(0x3e)?);
    // One section header: name, type, flags, address, offset, size, …
    let header = |index: u64| -> Option<&[u8]> {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let at = usize::try_from(at).ok()?;
        elf.get(at..at.checked_add(64)?)
    };
    let content = |header: &[u8]| -> Option<&'a [u8]> {
        let start = usize::try_from(number::<8>(header, 0x18)?).ok()?;
        let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
        elf.get(start..start.checked_add(length)?)
    };
    let strings = header(names).and_then(content).ok_or(CUT)?;
    for index in 0..count {
        let header = header(index).ok_or(CUT)?;
        let name = number::<4>(header, 0).ok_or(CUT)?;
        let name = usize::try_from(name).ok().and_then(|at| strings.get(at..));
        let name = name.ok_or(CUT)?.split(|&byte| byte == 0).next();
        if name == Some(wanted) {
            return content(header).ok_or(CUT);
        }
    }
    Err("it has no .modinfo")
}

/// For fuzzers: any bytes are a module or are refused.
pub(crate) fn fuzz_module_info(bytes: &[u8]) {
    let _ = ModuleInfo::read(bytes);
    let _ = unsigned(bytes.to_vec());
}

/// What the loader needs, as a map for tests and messages.
#[cfg(test)]
fn names(modules: &[Module]) -> std::collections::BTreeMap<&str, usize> {
    modules
        .iter()
        .enumerate()
        .map(|(at, module)| (module.name.as_str(), at))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest ELF file with a `.modinfo`.
    fn module(info: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let info = info.as_bytes();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(0x40, 0);
        let info_at = elf.len();
        elf.extend_from_slice(info);
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let table = elf.len();
        for (name, at, length) in [
            (0, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ] {
            let mut header = vec![0; 64];
            header[0] = name;
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a] = 64;
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        elf
    }

    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/drivers")).unwrap();
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        for (name, info) in modules {
            let path = dir.path().join(format!("kernel/drivers/{name}.ko"));
            fs::write(path, module(info)).unwrap();
        }
        dir
    }

    #[test]
    fn each_module_comes_after_what_it_needs_and_built_in_ones_not_at_all() {
        let dir = tree(
            &[
                ("virtio-rng", "license=GPL\0depends=virtio,rng-core\0"),
                ("virtio", "depends=\0"),
                (
                    "net",
                    "depends=virtio\0softdep=pre: helper absent post: later\0",
                ),
                ("helper", "name=helper\0"),
                ("unwanted", "depends=virtio\0"),
            ],
            "kernel/drivers/char/rng-core.ko\n",
        );
        let modules = Modules::read(dir.path()).unwrap();
        let order = modules
            .resolve(&["virtio_rng", "net", "virtio-rng"])
            .unwrap();
        let at = names(&order);
        assert_eq!(at.len(), order.len(), "each once");
        assert_eq!(
            at.keys().copied().collect::<Vec<_>>(),
            ["helper", "net", "virtio", "virtio_rng"]
        );
        assert!(at["virtio"] < at["virtio_rng"] && at["virtio"] < at["net"]);
        assert!(at["helper"] < at["net"]);
    }

    #[test]
    fn a_needed_module_that_is_missing_is_named() {
        let dir = tree(&[("net", "depends=gone\0")], "");
        let modules = Modules::read(dir.path()).unwrap();
        let error = modules.resolve(&["net"]).unwrap_err();
        assert!(matches!(error, ModuleError::Missing(name) if name == "gone"));
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let dir = tree(&[("a", "depends=b\0"), ("b", "depends=a\0")], "");
        let modules = Modules::read(dir.path()).unwrap();
        assert_eq!(modules.resolve(&["a"]).unwrap().len(), 2);
    }

    #[test]
    fn a_signature_is_taken_off_and_nothing_else() {
        let plain = module("depends=\0");
        let mut signed = plain.clone();
        signed.extend_from_slice(&[7; 100]);
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend_from_slice(&100u32.to_be_bytes());
        signed.extend_from_slice(SIGNATURE_MARK);
        assert_eq!(unsigned(signed), plain);
        assert_eq!(unsigned(plain.clone()), plain);
    }

    proptest! {
        #[test]
        fn damaged_modules_are_survived(
            at in 0usize..400, byte in any::<u8>(), cut in 0usize..400,
        ) {
            let mut elf = module("depends=a,b\0softdep=pre: c\0");
            if let Some(place) = elf.get_mut(at) {
                *place = byte;
            }
            elf.truncate(elf.len().saturating_sub(cut));
            fuzz_module_info(&elf);
        }
    }
}
