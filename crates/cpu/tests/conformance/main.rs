//! One suite of bare-metal guests that every backend runs: what a guest can see of its vCPU is the same
//! on all of them.
//!
//! The guests are integer code, so that they run on any `/dev/kvm`, also where the kernel interprets
//! it. Each test runs on every backend this host has; one that is missing is a loud skip.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stderr,
    reason = "a skip is said where tests are watched"
)]

mod guests;
mod machine;

use machine::{Machine, backends};

/// Runs a guest on every backend.
fn on_all(test: &str, run: impl Fn(Machine)) {
    for (name, made) in backends() {
        match made {
            Ok(machine) => {
                eprintln!("{test} on {name}");
                run(machine);
            }
            Err(why) => eprintln!("SKIP {test} on {name}: {why}"),
        }
    }
}

#[test]
fn ports_and_device_memory_are_reached_in_every_width() {
    on_all("ports", guests::ports_and_device_memory);
}

#[test]
fn string_port_instructions_move_each_element() {
    on_all("strings", guests::string_ports);
}

#[test]
fn a_page_fault_tells_address_cause_and_instruction() {
    on_all("page fault", guests::page_fault);
}

#[test]
fn an_interrupt_wakes_a_halted_vcpu_and_is_ended() {
    on_all("interrupt", guests::interrupt_wakes);
}

#[test]
fn the_timer_of_the_local_apic_fires() {
    on_all("timer", guests::timer);
}

#[test]
fn another_vcpu_starts_by_init_and_sipi() {
    on_all("start", guests::second_vcpu);
}

#[test]
fn locked_additions_of_two_vcpus_are_all_there() {
    on_all("locked additions", guests::locked_additions);
}

#[test]
fn a_triple_fault_shuts_down() {
    on_all("triple fault", guests::triple_fault);
}

#[test]
fn a_kicked_vcpu_goes_on_elsewhere_from_its_saved_state() {
    on_all("state", guests::saved_state);
}

#[test]
fn code_that_is_written_is_executed_as_written() {
    on_all("written code", guests::written_code);
}
