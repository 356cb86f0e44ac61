//! Special ends: out of memory, killed, and a disk that does not take the record.

use container::shim::protocol::{Attach, Request};
use container::shim::{ExitRecord, FALLBACK_EXIT_FILE};

use crate::world::{Wish, World, collect, wait_until};

#[test]
fn an_oom_kill_is_in_the_record() {
    let wish = Wish {
        memory_bytes: Some(16 << 20),
        ..Wish::default()
    };
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let Some(mut world) = World::new("oom", script, wish) else {
        return;
    };
    let (_, exited) = world.run();
    assert_eq!((exited.code, exited.oom_killed), (137, true));
    let record = world.record().unwrap();
    assert!(
        record.oom_killed && record.usage.memory_peak_bytes.is_some(),
        "{record:?}"
    );
    world.assert_gone();
}

#[test]
fn a_record_that_cannot_be_written_goes_to_the_run_directory_until_it_can() {
    let Some(mut world) = World::new("nodisk", "exit 5", Wish::default()) else {
        return;
    };
    let place = world.root.path().join("later");
    world.config.exit_record = place.join("exit");
    world.config.save(&world.dir()).unwrap();
    world.launch();
    let mut stream = world.attached(Attach::default());
    world.start();
    let fallback = world.dir().join(FALLBACK_EXIT_FILE);
    wait_until("the fallback is written", || {
        ExitRecord::load(&fallback).unwrap().is_some()
    });
    assert_eq!(ExitRecord::load(&fallback).unwrap().unwrap().code, 5);
    assert_eq!(
        world.client().state().unwrap().exited,
        None,
        "nobody is told yet"
    );
    std::fs::create_dir(&place).unwrap();
    let (_, exited) = collect(&mut stream);
    assert_eq!((exited.code, world.record().unwrap().code), (5, 5));
    drop(stream);
    world.assert_gone();
    let errors = std::fs::read_to_string(world.dir().join("shim.err")).unwrap();
    assert!(errors.contains("cannot write"), "{errors}");
}

#[test]
fn sigkill_is_told_as_a_signal() {
    let Some(mut world) = World::new("sigkill", "sleep 1000", Wish::default()) else {
        return;
    };
    world.launch();
    let mut stream = world.attached(Attach::default());
    world.start();
    stream
        .send(&Request::Signal {
            signal: libc::SIGKILL,
            all: true,
        })
        .unwrap();
    let (_, exited) = collect(&mut stream);
    assert_eq!(
        (exited.code, exited.signal, exited.oom_killed),
        (137, Some(9), false)
    );
    drop(stream);
    world.assert_gone();
}
