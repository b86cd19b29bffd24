//! Hosts in every shape in which people put them together, each with a sshd of its own: what one has reaches all that are to have it.

use crate::common::World;
use crate::common::sshd::{Key, Server, noise};

/// A host: its work tree and sshd, and the key by which it pulls from others.
struct Host {
    name: String,
    server: Server,
    key: Key,
}

impl Host {
    fn new(name: impl Into<String>) -> Self {
        let key = Key::new();
        // Nobody pulls by a host's own key.
        Self { name: name.into(), server: Server::new(&key), key }
    }

    fn world(&self) -> &World {
        &self.server.world
    }

    /// Lets this host pull from `other`.
    fn pulls_from(&self, other: &Self) {
        other.server.authorize(&self.key);
        other.server.add_to(self.world(), &other.name, &self.key);
    }

    /// Goes to where `other` is, with all content, but only what `others` bring.
    fn follow(&self, other: &Self, paths: &[&str]) -> serde_json::Value {
        let source = format!("{}/main", other.name);
        self.world().ok(&["fetch"]);
        let got = self.world().ok(&[&["get", "--json", "--source", &source], paths].concat());
        self.world().ok(&["git", "update-ref", "refs/heads/main", &source]);
        serde_json::from_str(got.trim()).unwrap()
    }

    /// Returns the hash of a stored file.
    fn hash_of(&self, spec: &str) -> String {
        self.world().sh(&format!("gdo cat {spec} | sha256sum"))
    }

    fn make(&self, name: &str, seed: u64, len: usize) {
        noise(self.world(), name, seed, len);
        self.world().ok(&["snapshot", "-q", "."]);
    }
}

fn hosts(names: &[&str]) -> Vec<Host> {
    names.iter().map(|name| Host::new(*name)).collect()
}

/// Lets all do something at the same time.
fn at_once<T: Send>(hosts: &[Host], act: impl Fn(&Host) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(|| act(host))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const LEN: usize = 3 << 20;

#[test]
fn in_a_star_all_get_what_the_hub_has_and_it_gets_what_they_have() {
    let mut all = hosts(&["hub", "a", "b", "c", "d", "e"]);
    let leaves = all.split_off(1);
    let hub = &all[0];
    hub.make("large", 1, LEN);
    leaves.iter().for_each(|leaf| leaf.pulls_from(hub));
    at_once(&leaves, |leaf| leaf.follow(hub, &[]));
    for leaf in &leaves {
        assert_eq!(leaf.hash_of("HEAD:large"), hub.hash_of("HEAD:large"), "{}", leaf.name);
        leaf.world().ok(&["check", "-q", "--data"]);
    }
    // The other way: what one of them made comes to another by the hub.
    hub.pulls_from(&leaves[0]);
    leaves[0].world().ok(&["restore"]);
    leaves[0].make("more", 2, LEN);
    hub.follow(&leaves[0], &[]);
    leaves[4].follow(hub, &[]);
    assert_eq!(leaves[4].hash_of("HEAD:more"), leaves[0].hash_of("HEAD:more"));
}

#[test]
fn in_a_tree_a_leaf_gets_from_the_middle_what_the_middle_got_from_the_top() {
    let mut all = hosts(&["top", "left", "right", "a", "b", "c"]);
    let leaves = all.split_off(3);
    let (top, middle) = (&all[0], &all[1..]);
    top.make("large", 1, LEN);
    middle.iter().for_each(|host| host.pulls_from(top));
    let above = |leaf: &Host| if leaf.name == "c" { &middle[1] } else { &middle[0] };
    leaves.iter().for_each(|leaf| leaf.pulls_from(above(leaf)));
    for seed in [1, 2] {
        let got = at_once(middle, |host| host.follow(top, &[]));
        let below = at_once(&leaves, |leaf| leaf.follow(above(leaf), &[]));
        for got in got.iter().chain(&below) {
            assert_eq!((&got["missing"], &got["hosts"][0]["failure"]), (&0.into(), &serde_json::Value::Null), "{got}");
            // Of a new version only what is new comes.
            assert!(seed == 1 || got["stored_bytes"].as_u64().unwrap() < LEN as u64 / 2, "{got}");
        }
        for leaf in &leaves {
            assert_eq!(leaf.hash_of("HEAD:large"), top.hash_of("HEAD:large"), "{} {seed}", leaf.name);
        }
        top.world().sh("printf changed | dd of=large bs=1 seek=1000000 conv=notrunc status=none; gdo snapshot -q");
    }
    // A leaf has no key for the top.
    let forbidden = &leaves[0];
    top.server.add_to(forbidden.world(), "top", &forbidden.key);
    let run = forbidden.world().gdo(&["fetch", "top"]);
    assert!(run.code == 5 && run.err.contains("Permission denied"), "{}{}", run.out, run.err);
}

#[test]
fn in_a_mesh_what_nobody_has_as_a_whole_comes_from_all_neighbours() {
    // A ring of six: each knows those beside it.
    let all: Vec<Host> = (0..6).map(|number| Host::new(format!("h{number}"))).collect();
    for number in 0..6 {
        all[number].pulls_from(&all[(number + 1) % 6]);
        all[number].pulls_from(&all[(number + 5) % 6]);
    }
    noise(all[0].world(), "one", 1, LEN);
    all[0].make("two", 2, LEN);
    for (host, from) in [(1, 0), (5, 0)] {
        all[host].follow(&all[from], &[]);
    }
    // Two hosts on the way take one file each, and what each lacks does not stop it.
    for (host, from, path) in [(2, 1, "one"), (4, 5, "two")] {
        all[host].follow(&all[from], &[path]);
    }
    let got = all[3].follow(&all[2], &[]);
    let shares: Vec<u64> = got["hosts"].as_array().unwrap().iter().map(|host| host["chunks"].as_u64().unwrap()).collect();
    assert!(got["missing"] == 0 && shares.len() == 2 && shares.iter().all(|n| *n > 20), "{got}");
    for spec in ["HEAD:one", "HEAD:two"] {
        assert_eq!(all[3].hash_of(spec), all[0].hash_of(spec), "{spec}");
    }
    // One of the neighbours is gone; what the ring has, still comes.
    let mut all = all;
    drop(all.remove(1));
    let got = all[1].world().gdo(&["get", "--source", "HEAD", "--json"]);
    assert!(got.code == 3 && got.err.contains("cannot connect to 'h1'"), "{}{}", got.out, got.err);
    assert_eq!(all[1].hash_of("HEAD:two"), all[0].hash_of("HEAD:two"));
}

#[test]
fn in_a_full_graph_each_gets_what_each_other_made() {
    let all = hosts(&["a", "b", "c", "d", "e"]);
    for (seed, host) in all.iter().enumerate() {
        host.make("large", seed as u64, LEN / 4);
        all.iter().filter(|other| other.name != host.name).for_each(|other| host.pulls_from(other));
    }
    at_once(&all, |host| {
        host.world().ok(&["fetch"]);
        for other in all.iter().filter(|other| other.name != host.name) {
            host.world().ok(&["get", "--from", &other.name, "--source", &format!("{}/main", other.name)]);
        }
    });
    for host in &all {
        for other in all.iter().filter(|other| other.name != host.name) {
            assert_eq!(host.hash_of(&format!("{}/main:large", other.name)), other.hash_of("HEAD:large"));
        }
    }
}
