//! The rules of the house that `cargo metadata` can prove: arrows between crates point down, pure
//! crates stay pure, and nothing banned or under a licence not allowed is in the graph.
//!
//! `ARCHITECTURE.md` has the same table for people; `deny.toml` has the bans and licences.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Every crate and its tier. A crate may depend on crates of lower tiers only.
const TIERS: &[(&str, u8)] = &[
    ("model", 0),
    ("api", 1),
    ("store", 1),
    ("engine", 1),
    ("cgroup", 1),
    ("seccomp", 1),
    ("memory", 1),
    ("bzimage", 1),
    ("container", 2),
    ("image", 2),
    ("volume", 2),
    ("network", 2),
    ("cpu", 2),
    ("devices", 2),
    ("agent", 2),
    ("vmm", 3),
    ("engines", 4),
    ("planner", 4),
    ("workflow", 4),
    ("node", 5),
    ("server", 5),
    ("control", 6),
    ("berth", 7),
    ("berth-oci", 7),
];

/// Crates that may be used from tests only.
const TEST_ONLY: &[&str] = &["testkit"];

/// What a crate knows nothing of: none of these may be anywhere below it.
const KNOWS_NOTHING_OF: &[(&str, &[&str])] = &[
    ("model", &["tokio", "hyper", "rusqlite", "rustix"]),
    ("planner", &["hyper", "rusqlite", "node"]),
    ("store", &["hyper", "engine", "api", "model"]),
    (
        "workflow",
        &["hyper", "engine", "network", "image", "container"],
    ),
    ("engine", &["hyper", "rusqlite", "container", "cgroup"]),
    ("cgroup", &["tokio", "serde_yaml", "model"]),
    ("seccomp", &["tokio", "model"]),
    (
        "container",
        &["hyper", "image", "network", "rusqlite", "rustls"],
    ),
    ("bzimage", &["memory", "tokio"]),
    ("memory", &["tokio", "kvm-ioctls", "devices"]),
    ("cpu", &["tokio", "devices", "virtio-queue"]),
    ("devices", &["tokio", "cpu", "kvm-ioctls", "iced-x86"]),
    ("vmm", &["tokio", "hyper", "model", "store", "container"]),
    ("agent", &["hyper", "rusqlite", "vm-memory"]),
    ("image", &["container", "network", "rusqlite", "engine"]),
    ("network", &["container", "image", "rusqlite", "engine"]),
    (
        "volume",
        &["container", "image", "network", "rusqlite", "engine"],
    ),
    (
        "server",
        &["store", "engine", "node", "control", "rusqlite"],
    ),
    ("control", &["engines", "container", "server"]),
    ("node", &["container", "control", "server"]),
    (
        "berth-oci",
        &["tokio", "hyper", "rusqlite", "rustls", "model"],
    ),
];

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// What `cargo metadata` knows.
struct Graph {
    packages: Vec<Value>,
    /// Package id to the ids of what it needs to be built and run.
    needs: BTreeMap<String, Vec<String>>,
    names: BTreeMap<String, String>,
}

impl Graph {
    fn read() -> Self {
        let output = cargo(&["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo metadata: {errors}");
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let packages = all["packages"].as_array().unwrap().clone();
        let names = packages
            .iter()
            .map(|it| (text(&it["id"]), text(&it["name"])))
            .collect();
        let needs = all["resolve"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| (text(&node["id"]), not_dev(&node["deps"])))
            .collect();
        Self {
            packages,
            needs,
            names,
        }
    }

    /// The crates of this workspace.
    fn own(&self) -> impl Iterator<Item = &Value> {
        self.packages.iter().filter(|it| it["source"].is_null())
    }

    fn own_names(&self) -> BTreeSet<String> {
        self.own().map(|it| text(&it["name"])).collect()
    }

    /// Names of everything a crate of this workspace needs, however far down.
    fn below(&self, name: &str) -> BTreeSet<&str> {
        let package = self.own().find(|it| it["name"] == name).unwrap();
        let mut open = vec![text(&package["id"])];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            for next in &self.needs[&id] {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen.iter().map(|id| self.names[id].as_str()).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The ids of dependencies that are not for tests only.
fn not_dev(deps: &Value) -> Vec<String> {
    let normal = |dep: &&Value| {
        let kinds = dep["dep_kinds"].as_array().unwrap();
        kinds.iter().any(|kind| kind["kind"] != "dev")
    };
    let deps = deps.as_array().unwrap();
    deps.iter()
        .filter(normal)
        .map(|dep| text(&dep["pkg"]))
        .collect()
}

fn tier(name: &str) -> Option<u8> {
    TIERS
        .iter()
        .find(|(it, _)| *it == name)
        .map(|(_, tier)| *tier)
}

#[test]
fn arrows_point_down_only() {
    let graph = Graph::read();
    let own = graph.own_names();
    for name in &own {
        let known = tier(name).is_some() || TEST_ONLY.contains(&name.as_str());
        assert!(
            known,
            "crate {name} has no tier: add it here and to ARCHITECTURE.md"
        );
    }
    for package in graph.own() {
        let name = text(&package["name"]);
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = text(&dependency["name"]);
            if !own.contains(&on) || dependency["kind"] == "dev" {
                continue;
            }
            assert!(
                tier(&on) < tier(&name) && tier(&on).is_some(),
                "{name} (tier {:?}) may not depend on {on} (tier {:?})",
                tier(&name),
                tier(&on)
            );
        }
    }
}

#[test]
fn crates_know_nothing_of_what_is_not_theirs() {
    let graph = Graph::read();
    let mut wrong = Vec::new();
    for (name, banned) in KNOWS_NOTHING_OF {
        let below = graph.below(name);
        let reached = banned.iter().filter(|banned| below.contains(*banned));
        wrong.extend(reached.map(|banned| format!("{name} reaches {banned}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_map_for_people_names_every_crate() {
    let map = house_file("ARCHITECTURE.md");
    for name in Graph::read().own_names() {
        assert!(
            map.contains(&format!("| `{name}` |")),
            "ARCHITECTURE.md lacks {name}"
        );
    }
}

/// Name and licence of every package that is built, on this kind of machine. `cargo metadata` also
/// lists optional ones that no feature asks for; `cargo tree` does not.
fn built() -> BTreeSet<(String, String)> {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--edges=normal,build",
        "--prefix=none",
    ])
    .args(["--locked", "--offline", "--format={p}|{l}"])
    .output()
    .unwrap();
    let errors = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree: {errors}");
    String::from_utf8(tree.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(package, licence)| {
            let name = package.split(' ').next().unwrap();
            (name.to_owned(), licence.trim_end_matches(" (*)").to_owned())
        })
        .collect()
}

#[test]
fn nothing_banned_is_built() {
    let rules = house_file("deny.toml");
    let bans: Vec<&str> = rules
        .lines()
        .filter(|line| !line.contains("wrappers"))
        .filter_map(|line| line.split("{ crate = \"").nth(1)?.split('"').next())
        .collect();
    assert!(
        bans.contains(&"ring"),
        "deny.toml is not read right: {bans:?}"
    );
    let built = built();
    assert!(built.len() > 50, "cargo tree is not read right: {built:?}");
    for (name, _) in built {
        assert!(
            !bans.contains(&name.as_str()),
            "{name} is banned: see deny.toml"
        );
    }
}

#[test]
fn every_licence_is_allowed() {
    let rules = house_file("deny.toml");
    let list = rules.split("allow = [").nth(1).unwrap();
    let list = list.split(']').next().unwrap();
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    for (name, licence) in built() {
        let good = permits(&licence, &allowed);
        assert!(good, "{name} has licence {licence:?}: see deny.toml");
    }
}

#[test]
fn licence_expressions_are_understood() {
    let permits = |text| permits(text, &["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    assert!(permits("MIT OR GPL-3.0"));
    assert!(permits("GPL-3.0/MIT"));
    assert!(permits("(MIT OR GPL-3.0) AND ISC"));
    assert!(permits("Apache-2.0 WITH LLVM-exception OR X"));
    assert!(!permits("MIT AND GPL-3.0"));
    assert!(!permits("Apache-2.0"));
    assert!(!permits(""));
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, allowed) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut good = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= both(words, at, allowed);
    }
    good
}

fn both(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut good = single(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= single(words, at, allowed);
    }
    good
}

fn single(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let good = either(words, at, allowed);
        *at += 1;
        return good;
    }
    let mut licence = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&licence.as_str())
}

fn house_file(name: &str) -> String {
    let path = format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
