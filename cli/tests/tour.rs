//! What `gdo tour` leaves behind: nothing.

use crate::common::World;

#[test]
fn a_tour_leaves_nothing_also_when_it_is_interrupted_or_killed() {
    let world = World::new();
    world.sh("mkdir ../tmp ../small ../bin; echo 1 >../small/f");
    world.sh("TMPDIR=$PWD/../tmp gdo tour -q ../small; test -z \"$(ls ../tmp)\"");
    // The copy of the tree takes its time, so that the tour is met in the middle.
    world.sh("printf '#!/bin/sh\\nexec sleep 100\\n' >../bin/cp; chmod +x ../bin/cp");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let path = format!("{}:{}", world.path("../bin").display(), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gdo"));
        command.args(["tour", "../small"]).env("PATH", path).env("TMPDIR", world.path("../tmp")).current_dir(world.path(""));
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut tour = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        world.sh("until ls -d ../tmp/gdo-tour-*/alpha >/dev/null 2>&1; do sleep 0.01; done; sleep 0.2");
        let group = rustix::process::Pid::from_raw(tour.id() as i32).unwrap();
        rustix::process::kill_process_group(group, signal).unwrap(); // as a terminal does with SIGINT, which a test in the background ignores
        tour.wait().unwrap();
        world.sh("for i in $(seq 500); do test -n \"$(ls ../tmp)\" || exit 0; sleep 0.02; done; exit 1");
    }
}

#[test]
fn the_second_host_comes_up_over_a_sshd_where_one_can_be_started_and_the_sshd_ends_however_the_tour_does() {
    let world = World::new();
    world.sh("mkdir ../small ../tmp ../bin; head -c 300000 /dev/urandom >../small/large");
    let told = world.sh("TMPDIR=$PWD/../tmp gdo tour ../small");
    assert!(told.contains("over ssh, with a key") && told.contains("chunks of large files, 29"), "{told}");
    world.sh("printf '#!/bin/sh\\necho no keys today >&2; exit 1\\n' >../bin/ssh-keygen; chmod +x ../bin/ssh-keygen");
    let told = world.sh("PATH=$PWD/../bin:$PATH TMPDIR=$PWD/../tmp gdo tour ../small");
    assert!(told.contains("(not over ssh, as hosts do, because that does not work here: no keys today)"), "{told}");
    world.sh("TMPDIR=$PWD/../tmp gdo tour ../small >/dev/null 2>&1 & tour=$!
         until cat ../tmp/gdo-tour-*/alpha/sshd/sshd.pid 2>/dev/null >../pid && test -s ../pid; do sleep 0.01; done; kill -9 $tour
         wait $tour || true");
    let pid = world.read("../pid");
    world.sh(&format!("for i in $(seq 500); do kill -0 {} 2>/dev/null || exit 0; sleep 0.02; done; exit 1", pid.trim()));
    world.sh("for i in $(seq 500); do test -n \"$(ls ../tmp)\" || exit 0; sleep 0.02; done; exit 1");
}

#[test]
fn only_what_a_dead_tour_left_is_removed_by_the_next_one() {
    let world = World::new();
    world.sh("mkdir ../small; for dir in 1 2 3 x; do mkdir -p ../tmp/gdo-tour-$dir/alpha; touch ../tmp/gdo-tour-$dir/lock; done");
    world.sh("rm ../tmp/gdo-tour-2/lock; ln -s gdo-tour-3 ../tmp/gdo-tour-4");
    let _running = git_devops::durable::Lock::exclusive(&world.path("../tmp/gdo-tour-3/lock")).unwrap();
    world.sh("TMPDIR=$PWD/../tmp gdo tour -q ../small");
    assert_eq!(world.sh("ls ../tmp"), "gdo-tour-2\ngdo-tour-3\ngdo-tour-4\ngdo-tour-x\n");
    world.sh("gdo tour -q --keep --scratch ../tmp/kept ../small; ls -d ../tmp/kept/alpha; ! ls ../tmp/kept/lock 2>/dev/null");
    world.sh(
        "mkdir ../tmp/again; touch ../tmp/again/lock; gdo tour -q --scratch ../tmp/again ../small; ! ls ../tmp/again 2>/dev/null",
    );
    assert_eq!(world.gdo(&["tour", "-q", "--scratch", "../tmp/kept", "../small"]).code, 5);
}
