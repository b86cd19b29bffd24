//! How memory grows with the number of files.

use std::fs;
use std::process::Command;

use crate::common::World;

/// Makes small files, a hundred in a directory, whose paths are as long as those of a real tree.
fn write_files(world: &World, n: usize) {
    for at in 0..n {
        let dir = world.path(&format!("group-{:03}/dir-{:04}", at / 5000, at / 100));
        if at % 100 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(format!("file-{at:06}.conf")), format!("{at}\n")).unwrap();
    }
}

/// Returns a processor that may be used: one thread needs the same each time, where several need what the moment wants.
fn one_processor() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    list.split([',', '-']).next().unwrap().to_owned()
}

/// Returns the largest resident set of the program, in KiB.
fn peak(world: &World, args: &[&str]) -> usize {
    let report = world.path("../peak");
    let mut command = Command::new("taskset");
    command.args(["-c", &one_processor(), "/usr/bin/time", "-f", "%M", "-o"]).arg(&report);
    command.arg(env!("CARGO_BIN_EXE_gdo")).args(args);
    let run = world.run(command);
    assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
    fs::read_to_string(report).unwrap().trim().parse().unwrap()
}

/// What is done one after the other, each in a tree of which one file out of a hundred was changed just before, and what it may need for a million files, in
/// MiB, if the growth between two sizes goes on. That of restores and checks ends before that: measured, they take 206 and 116.
const VERBS: &[(&[&str], usize)] = &[
    (&["snapshot", "-q"], 256),
    (&["status"], 256),
    (&["snapshot", "-q"], 256),
    (&["restore", "-q", "--target", "../out"], 288),
    (&["check", "--data"], 320),
    // These are what git needs for objects and, when it collects, for its index.
    (&["gc"], 640),
    (&["maintain"], 400),
];

/// Returns what each verb needs with so many files, in KiB.
fn peaks(n: usize) -> Vec<usize> {
    let world = World::new();
    write_files(&world, n);
    let peak_of = |(verb, _): &(&[&str], usize)| {
        let peak = peak(&world, verb);
        world.sh("for file in group-*/dir-*/file-????50.conf; do echo changed >$file; done");
        peak
    };
    VERBS.iter().map(peak_of).collect()
}

#[test]
fn a_million_files_need_no_more_than_a_small_machine_has() {
    const FEW: usize = 20_000;
    const MANY: usize = 80_000;
    let (few, many) = (peaks(FEW), peaks(MANY));
    for ((verb, limit), (few, many)) in VERBS.iter().zip(few.into_iter().zip(many)) {
        let million = many + many.saturating_sub(few) * (1_000_000 - MANY) / (MANY - FEW);
        assert!(million < limit << 10, "{verb:?}: {few} KiB for {FEW} files, {many} for {MANY}, so {million} for a million");
    }
}
