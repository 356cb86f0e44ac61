//! temporary
#![allow(missing_docs, clippy::unwrap_used)]
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};
use vmm::{
    VmConfig,
    process::{Options, run},
    resources::Listeners,
};
fn main() {
    let since = std::time::Instant::now();
    let mut args = std::env::args().skip(2);
    let (mut kernel, mut initrd, mut append, mut memory, mut cpus) =
        (String::new(), vec![], String::new(), 512u64, 1u32);
    let mut disks = vec![];
    let mut jail = false;
    let mut vsock = None;
    while let Some(a) = args.next() {
        let v = args.next().unwrap();
        match a.as_str() {
            "--kernel" => kernel = v,
            "--initrd" => initrd.push(v),
            "--append" => append = v,
            "--memory" => memory = v.trim_end_matches('M').parse().unwrap(),
            "--cpus" => cpus = v.parse().unwrap(),
            "--disk" => {
                disks.push(serde_json::json!({"id": format!("disk{}", disks.len()), "path": v}))
            }
            "--jail" => jail = v == "1",
            "--vsock" => vsock = Some(serde_json::json!({"cid":3,"socket":v})),
            _ => panic!(),
        }
    }
    let config = serde_json::json!({"version":1,"name":"dev","memory_bytes": memory<<20,"vcpus":cpus,"kernel":kernel,"command_line":append,"accel":"soft","initrd":initrd,"disks":disks,"vsock":vsock});
    let config = VmConfig::parse(config.to_string().as_bytes()).unwrap();
    let (a, mut b) = UnixStream::pair().unwrap();
    if !jail {
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            loop {
                let n = b.read(&mut buf).unwrap();
                if n == 0 {
                    break;
                }
                std::io::stdout().write_all(&buf[..n]).unwrap();
                std::io::stdout().flush().unwrap();
            }
        });
    }
    let l = Listeners::bind(&config).unwrap();
    let r = run(
        &config,
        &l,
        Options {
            backend: cpu::Backend::Soft,
            jail,
            attached: Some(a),
            boots: 1,
            since,
            verbose: true,
        },
    );
    std::thread::sleep(std::time::Duration::from_millis(100));
    let _ = writeln!(std::io::stderr(), "stopped: {r:?}");
}
