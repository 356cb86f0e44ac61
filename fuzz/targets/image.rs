//! Whatever crate `image` parses of outside bytes: references, manifests, challenges of registries, kernel modules,
//! disks and their boot loaders, and layers, which are unpacked into a directory of their own.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    image::fuzzing::reference(data);
    image::fuzzing::manifest(data);
    image::fuzzing::auth_challenge(data);
    image::fuzzing::module(data);
    image::fuzzing::qcow2(data);
    image::fuzzing::partitions(data);
    image::fuzzing::boot_loader(data);
    image::fuzzing::disk(data);
    let scratch = tempfile::tempdir().expect("a directory to unpack into");
    image::fuzzing::tar_unpack(data, scratch.path());
});
