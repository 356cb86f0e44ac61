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
mod interrupts;
mod litmus;
mod machine;
mod writes;

use machine::{Machine, backends, software};

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

#[test]
fn stores_may_be_buffered() {
    litmus::STORE_BUFFERING.run(&software());
}

#[test]
fn a_fence_empties_the_store_buffer() {
    litmus::STORE_BUFFERING_FENCED.run(&software());
}

#[test]
fn a_locked_instruction_empties_the_store_buffer() {
    litmus::STORE_BUFFERING_LOCKED.run(&software());
}

#[test]
fn stores_are_seen_in_their_order() {
    litmus::MESSAGE_PASSING.run(&software());
}

#[test]
fn stores_of_any_kind_are_seen_in_their_order() {
    litmus::MESSAGE_PASSING_OTHERWISE.run(&software());
}

#[test]
fn no_load_sees_a_later_store() {
    litmus::LOAD_BUFFERING.run(&software());
}

#[test]
fn all_vcpus_see_stores_in_one_order() {
    litmus::INDEPENDENT_READS.run(&software());
}

#[test]
fn a_variable_never_goes_back() {
    litmus::COHERENCE.run(&software());
}

#[test]
fn crossed_stores_do_not_both_come_first() {
    litmus::CROSSED_STORES.run(&software());
}

#[test]
fn sixteen_bytes_change_at_once() {
    litmus::SIXTEEN_BYTES.run(&software());
}

#[test]
fn additions_by_every_locked_instruction_are_all_there() {
    litmus::locked_sums(&software());
}

#[test]
fn a_store_changes_the_next_instruction() {
    on_all(
        "a store changes the next instruction",
        writes::next_instruction,
    );
}

#[test]
fn a_string_store_changes_the_next_instruction() {
    on_all(
        "a string store changes the next instruction",
        writes::next_instruction_by_string,
    );
}

#[test]
fn a_hot_routine_is_called_as_written() {
    on_all("a hot routine is called as written", writes::called_routine);
}

#[test]
fn code_is_written_by_another_address() {
    on_all("code is written by another address", writes::alias);
}

#[test]
fn a_branch_comes_and_goes() {
    on_all("a branch comes and goes", writes::static_key);
}

#[test]
fn an_instruction_in_two_pages_changes_with_the_second() {
    on_all(
        "an instruction in two pages changes with the second",
        writes::crossing,
    );
}

#[test]
fn routines_are_copied_over_each_other() {
    on_all("routines are copied over each other", writes::copied_over);
}

#[test]
fn what_a_page_maps_is_what_is_executed() {
    on_all("what a page maps is what is executed", writes::remapped);
}

#[test]
fn address_spaces_have_code_of_their_own() {
    on_all(
        "address spaces have code of their own",
        writes::address_spaces,
    );
}

#[test]
fn a_vcpu_executes_what_another_wrote() {
    on_all("a vcpu executes what another wrote", writes::other_vcpu);
}

#[test]
fn a_device_writes_over_a_hot_loop() {
    on_all("a device writes over a hot loop", writes::device);
}

#[test]
fn a_device_writes_code_that_lies_ahead() {
    on_all("device ahead", writes::device_ahead);
}

#[test]
fn hot_code_does_not_notice_interrupts() {
    interrupts::in_hot_code(&software());
}
