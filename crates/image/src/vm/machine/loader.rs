//! What boot loaders are told on a disk: their configurations, read as they are meant.
//!
//! Pure functions over texts that come from strangers; `boot` finds the texts and takes what they name.
//! Scripts are not run: the first entry of a grub.cfg is what it would show first.

use std::cmp::Ordering;

use super::boot::BootError;

/// Most bytes of a command line: what a kernel takes, less what is added.
const MAX_COMMAND_LINE: usize = 1536;
/// Most entries of a configuration.
const MAX_ENTRIES: usize = 4096;

/// What a boot loader would start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path of the kernel.
    pub kernel: String,
    /// Path of its initial file system.
    pub initrd: Option<String>,
    /// What the kernel is told.
    pub options: String,
}

/// What the kernel is told: what the disk says, but for the console, which is the machine's, and with
/// `root` where nothing names one.
pub(super) fn command_line(options: &str, root: Option<&str>) -> Result<String, BootError> {
    let unwanted = |word: &str| {
        ["console=", "earlycon", "earlyprintk", "BOOT_IMAGE="].iter().any(|it| word.starts_with(it))
            || ["quiet", "splash", "rhgb", "--"].contains(&word)
            // A script's variable, or one that only its boot loader knows.
            || word.contains(['$', '"', '\'', '`', ';'])
    };
    let words = options.split_ascii_whitespace();
    let mut words: Vec<String> = words
        .filter(|it| !unwanted(it))
        .map(str::to_owned)
        .collect();
    if !words.iter().any(|word| word.starts_with("root=")) {
        let root = root.ok_or(BootError::NoKernel)?;
        words.insert(0, format!("root={root}"));
        words.insert(1, "ro".to_owned());
    }
    let line = words.join(" ");
    let plain = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !plain || line.len() > MAX_COMMAND_LINE {
        return Err(BootError::CommandLine);
    }
    Ok(line)
}

/// An entry of the Boot Loader Specification (type 1). `variables`: lines of a `grubenv`.
pub(super) fn specification(text: &str, variables: &str) -> Option<Entry> {
    let mut entry = Entry::default();
    for line in text.lines() {
        let (key, value) = line.trim().split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "linux" => entry.kernel = value.to_owned(),
            // Words beyond the first are variables.
            "initrd" if entry.initrd.is_none() => {
                let first = value.split_ascii_whitespace().next();
                entry.initrd = first.map(str::to_owned);
            }
            "options" => {
                for word in value.split_ascii_whitespace() {
                    let known = word.strip_prefix('$').and_then(|name| {
                        let lines = variables.lines();
                        lines
                            .filter_map(|line| line.split_once('='))
                            .find(|it| it.0 == name)
                    });
                    entry
                        .options
                        .push_str(known.map_or(word, |(_, value)| value));
                    entry.options.push(' ');
                }
            }
            _ => {}
        }
    }
    (!entry.kernel.is_empty()).then_some(entry)
}

/// The default entry of an extlinux or syslinux configuration, else its first.
pub(super) fn extlinux(text: &str) -> Option<Entry> {
    let mut default = None;
    let mut entries: Vec<(String, Entry)> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.trim().split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match key.to_ascii_lowercase().as_str() {
            "default" => default = Some(value.to_owned()),
            "label" if entries.len() < MAX_ENTRIES => {
                entries.push((value.to_owned(), Entry::default()));
            }
            key => {
                let Some((_, entry)) = entries.last_mut() else {
                    continue;
                };
                match key {
                    "kernel" | "linux" => entry.kernel = value.to_owned(),
                    "initrd" => entry.initrd = value.split(',').next().map(str::to_owned),
                    "append" => entry.options = value.to_owned(),
                    _ => {}
                }
            }
        }
    }
    entries.retain(|(_, entry)| !entry.kernel.is_empty());
    let chosen = entries
        .iter()
        .position(|(label, _)| Some(label) == default.as_ref());
    let (_, mut entry) = entries.into_iter().nth(chosen.unwrap_or(0))?;
    if entry.initrd.is_none() {
        // The older way to name it.
        let words = entry.options.split_ascii_whitespace();
        entry.initrd = words
            .filter_map(|word| word.strip_prefix("initrd="))
            .next()
            .map(str::to_owned);
    }
    let words = entry.options.split_ascii_whitespace();
    let words: Vec<&str> = words.filter(|word| !word.starts_with("initrd=")).collect();
    entry.options = words.join(" ");
    Some(entry)
}

/// The first kernel that a grub.cfg starts, and the initial file system it does so with.
pub(super) fn grub(text: &str) -> Option<Entry> {
    let mut lines = text.lines().map(|line| line.split_ascii_whitespace());
    let mut kernel = lines.by_ref().find_map(|mut words| {
        let command = words.next()?;
        let starts = ["linux", "linux16", "linuxefi"].contains(&command);
        starts.then_some(words)
    })?;
    let path = kernel.next()?.to_owned();
    let options: Vec<&str> = kernel.collect();
    let initrd = lines
        .take_while(|words| {
            !words
                .clone()
                .next()
                .is_some_and(|it| it.starts_with("linux"))
        })
        .find_map(|mut words| {
            let command = words.next()?;
            let loads = ["initrd", "initrd16", "initrdefi"].contains(&command);
            loads.then(|| words.last()).flatten()
        });
    Some(Entry {
        kernel: path,
        initrd: initrd.map(str::to_owned),
        options: options.join(" "),
    })
}

/// Orders names by the numbers in them: `-6.10` after `-6.9`.
pub(super) fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        match (digits(a), digits(b)) {
            (0, _) | (_, 0) => match (a.split_first(), b.split_first()) {
                (Some((x, rest_a)), Some((y, rest_b))) if x == y => (a, b) = (rest_a, rest_b),
                (x, y) => return x.map(|it| it.0).cmp(&y.map(|it| it.0)),
            },
            (m, n) => {
                let number = |text: &[u8]| {
                    let zeros = text.iter().take_while(|&&byte| byte == b'0').count();
                    (text.len() - zeros, text[zeros..].to_vec())
                };
                match number(&a[..m]).cmp(&number(&b[..n])) {
                    Ordering::Equal => (a, b) = (&a[m..], &b[n..]),
                    order => return order,
                }
            }
        }
    }
}

/// Whatever a boot loader's configuration says, reading it ends.
pub(crate) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for entry in [specification(&text, &text), extlinux(&text), grub(&text)]
        .into_iter()
        .flatten()
    {
        if let Ok(line) = command_line(&entry.options, Some("/dev/vda")) {
            assert!(line.len() <= MAX_COMMAND_LINE && !line.contains('\n'));
        }
    }
    let (a, b) = text.split_at(text.floor_char_boundary(text.len() / 2));
    assert_eq!(by_version(a, b), by_version(b, a).reverse());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn boot_loaders_configurations_are_read_as_they_are_meant() {
        let bls = "title Fedora\nversion 6.9\nlinux /vmlinuz-6.9\ninitrd /initramfs-6.9.img $tuned\n\
                   options root=UUID=1 ro $kernelopts\n";
        let entry = specification(
            bls,
            "saved_entry=x\nkernelopts=rootflags=subvol=root rhgb\n",
        )
        .unwrap();
        assert_eq!(entry.kernel, "/vmlinuz-6.9");
        assert_eq!(entry.initrd.as_deref(), Some("/initramfs-6.9.img"));
        assert_eq!(
            command_line(&entry.options, None).unwrap(),
            "root=UUID=1 ro rootflags=subvol=root"
        );

        let conf = "DEFAULT virt\nLABEL lts\n  LINUX vmlinuz-lts\nLABEL virt\n  LINUX vmlinuz-virt\n\
                    \tINITRD initramfs-virt,more\n  APPEND root=LABEL=/ modules=ext4 quiet console=tty0\n";
        let entry = extlinux(conf).unwrap();
        assert_eq!(entry.kernel, "vmlinuz-virt");
        assert_eq!(entry.initrd.as_deref(), Some("initramfs-virt"));
        let line = command_line(&entry.options, None).unwrap();
        assert_eq!(line, "root=LABEL=/ modules=ext4");
        let old = extlinux("LABEL l\nKERNEL /k\nAPPEND initrd=/i root=/dev/sda1").unwrap();
        assert_eq!(
            (old.initrd.as_deref(), &*old.options),
            (Some("/i"), "root=/dev/sda1")
        );

        let cfg = "menuentry 'Debian' {\n\tsearch --set=root x\n\tlinux\t/boot/vmlinuz-6.1 \
                   root=PARTUUID=ab ro $vt_handoff quiet\n\tinitrd\t/boot/initrd.img-6.1\n}\n\
                   menuentry old {\n linux /boot/vmlinuz-5\n initrd /boot/initrd-5\n}\n";
        let entry = grub(cfg).unwrap();
        assert_eq!(entry.kernel, "/boot/vmlinuz-6.1");
        assert_eq!(entry.initrd.as_deref(), Some("/boot/initrd.img-6.1"));
        let line = command_line(&entry.options, None).unwrap();
        assert_eq!(line, "root=PARTUUID=ab ro");
        let bare = grub("linux /k root=/dev/vda1\nlinux /old\ninitrd /i").unwrap();
        assert_eq!(bare.initrd, None);
    }

    #[test]
    fn newer_kernels_come_last() {
        let mut names = [
            "vmlinuz-6.9.1",
            "vmlinuz-6.10.0",
            "vmlinuz-5.99",
            "vmlinuz-6.10.0-1",
            "vmlinuz",
        ];
        names.sort_by(|a, b| by_version(a, b));
        assert_eq!(
            names,
            [
                "vmlinuz",
                "vmlinuz-5.99",
                "vmlinuz-6.9.1",
                "vmlinuz-6.10.0",
                "vmlinuz-6.10.0-1"
            ]
        );
    }

    #[test]
    fn a_command_line_that_is_none_is_refused() {
        for options in [
            "root=/dev/x \u{e9}",
            &format!("root=/dev/x {}", "y".repeat(1600)),
        ] {
            let made = command_line(options, None);
            assert!(matches!(made, Err(BootError::CommandLine)), "{options}");
        }
        assert!(matches!(command_line("ro", None), Err(BootError::NoKernel)));
    }
}
