//! Tests of the crate.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
};

use proptest::prelude::*;

use super::*;

/// A bzImage around a payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[HEADER] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file.extend_from_slice(b"the decompressor");
    file.extend_from_slice(payload);
    file
}

/// More than one block of lz4's.
fn kernel() -> Vec<u8> {
    let mut kernel = b"\x7fELF".to_vec();
    kernel.resize(9 << 20, 7);
    kernel
}

#[test]
fn a_kernel_is_unpacked_whatever_its_compression() {
    let commands: [(&str, &[&str]); 6] = [
        ("gzip", &["-n"]),
        ("xz", &["--check=crc32", "--x86", "--lzma2=dict=32MiB"]),
        ("lzma", &["-9"]),
        ("bzip2", &["-9"]),
        ("zstd", &["-19", "--ultra", "-q"]),
        ("lz4", &["-l", "-9", "-q"]),
    ];
    let plain = kernel();
    for (name, arguments) in commands {
        let child = Command::new(name)
            .args(arguments)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIP a_kernel_is_unpacked_whatever_its_compression: {name} is not installed"
            );
            continue;
        };
        let mut input = child.stdin.take().unwrap();
        let mut payload = thread::scope(|scope| {
            scope.spawn(|| {
                input.write_all(&plain).unwrap();
                drop(input);
            });
            child.wait_with_output().unwrap().stdout
        });
        // As the kernel's build does for all but gzip.
        if name != "gzip" {
            payload.extend_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
        }
        let unpacked = vmlinux(&bzimage(&payload)).unwrap().unwrap();
        assert!(unpacked == plain, "{name}");
        let compression = Compression::of(&payload).unwrap();
        let limit = plain.len() as u64 - 1;
        let refused = decompress::decompress(&payload, compression, limit);
        assert!(
            matches!(refused, Err(BzImageError::TooLarge { .. })),
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_unpacked_is_told_apart() {
    assert!(vmlinux(&kernel()).unwrap().is_none());
    assert!(vmlinux(&bzimage(&kernel())).unwrap() == Some(kernel()));
    assert!(vmlinux(&bzimage(b"something new")).unwrap().is_none());
    let damaged = vmlinux(&bzimage(b"\x28\xb5\x2f\xfd and so on"));
    assert!(matches!(damaged, Err(BzImageError::Decompress { .. })));
    let nothing = vmlinux(b"#!/bin/sh\n");
    assert!(matches!(nothing, Err(BzImageError::Format(_))));
}

proptest! {
    #[test]
    fn no_file_breaks_the_readers(payload: Vec<u8>, magic in 0..4usize, cut in 0..3000usize) {
        let magics: [&[u8]; 4] = [b"", b"\x02\x21\x4c\x18", b"\x5d\0\0", b"\x28\xb5\x2f\xfd"];
        let mut file = bzimage(&[magics[magic], &payload].concat());
        file.truncate(cut);
        let _ = vmlinux(&file);
    }
}
