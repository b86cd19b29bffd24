//! Measures how fast the objects of a repository are read, in pack order: `read_speed GIT_DIR [THREADS]`.
//!
//! Prints wall and CPU seconds, and the peak of resident memory.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use git_devops::git::{Objects, Oid};

fn main() {
    let mut args = std::env::args().skip(1);
    let git_dir = args.next().expect("usage: read_speed GIT_DIR [THREADS]");
    let n_threads: usize = args.next().map_or(1, |n| n.parse().expect("THREADS is a number"));
    let oids = oids_in_pack_order(&git_dir);
    let objects = Objects::open(Path::new(&git_dir)).expect("a repository");
    let (next, n_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));

    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                while let Some(oid) = oids.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (_, data) = objects.find(oid).expect("a readable object").expect("a listed object");
                    n_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let wall = start.elapsed().as_secs_f64();
    let (cpu, peak) = (cpu_seconds(), peak_kib() / 1024);
    let mib = n_bytes.into_inner() >> 20;
    println!("{} objects, {mib} MiB, {n_threads} threads: wall {wall:.2} s, cpu {cpu:.2} s, peak {peak} MiB", oids.len());
}

fn oids_in_pack_order(git_dir: &str) -> Vec<Oid> {
    let args = ["--git-dir", git_dir, "cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)"];
    let output = Command::new("git").args(args).output().expect("git");
    output.stdout.split(|byte| *byte == b'\n').filter_map(|line| Oid::from_hex(line).ok()).collect()
}

/// User and system time of this process, from the clock ticks in `/proc`.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name in parentheses").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
