//! Checking in what is larger than the room for it: other hosts pull while it is read; by a real sshd on the loopback.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::World;
use crate::common::sshd::{Key, Server, noise};

/// A host that makes, and one that holds; each knows the other.
fn two_hosts() -> (Key, Server, Server) {
    let key = Key::new();
    let (maker, holder) = (Server::new(&key), Server::new(&key));
    holder.add_to(&maker.world, "holder", &key);
    maker.add_to(&holder.world, "maker", &key);
    set(&maker.world, &[("policy", "cache"), ("quota", "16M"), ("copies", "1"), ("name", "maker")]);
    set(&holder.world, &[("copies", "1"), ("name", "holder"), ("capacity", "10")]);
    (key, maker, holder)
}

fn set(world: &World, settings: &[(&str, &str)]) {
    settings.iter().for_each(|(key, value)| drop(world.sh(&format!("git config --file .git/config devops.{key} {value}"))));
}

/// A program that runs beside, until it is dropped; and the lock of its repository.
struct Beside(Child, PathBuf);

impl Beside {
    fn start(world: &World, script: &str) -> Self {
        let dir = std::path::Path::new(env!("CARGO_BIN_EXE_gdo")).parent().unwrap();
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {script}")]).env("PATH", path).current_dir(world.path("")).stdin(Stdio::null());
        Self(command.spawn().unwrap(), world.path(".git/devops/state/lock"))
    }

    fn follow(world: &World) -> Self {
        Self::start(world, "gdo sync --follow --every 1 >../follow.out 2>../follow.err")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        // The programs that it started keep the lock until they have ended, too.
        let status = Command::new("flock").args(["-w", "60"]).arg(&self.1).arg("true").status();
        assert!(status.expect("flock is needed").success() || std::thread::panicking(), "what was killed keeps its lock");
    }
}

/// Returns how many bytes the store of a host takes.
fn store_len(world: &World) -> u64 {
    world.sh("du -sb .git/devops/store 2>/dev/null | cut -f1 || true").trim().parse().unwrap_or(0)
}

/// Says whether the holder knows that something is on its way.
fn is_awaited(holder: &World) -> bool {
    !holder.sh("gdo git for-each-ref refs/devops/in-flight-of").is_empty()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_is_larger_than_the_room_for_it_is_handed_over_while_it_is_read() {
    let (key, maker, holder) = two_hosts();
    noise(&maker.world, "../image", 1, 64 << 20);
    noise(&maker.world, "small", 2, 1000);
    maker.world.snapshot();
    let follow = Beside::follow(&holder.world);
    let mut most = 0;
    let mut run = Beside::start(
        &maker.world,
        "gdo snapshot --stdin vm/image --hand-over --in-flight 16M --wait 60 -m streamed <../image >../run.out 2>../run.err",
    );
    while run.0.try_wait().unwrap().is_none() {
        most = most.max(store_len(&maker.world));
        std::thread::sleep(Duration::from_millis(50));
    }
    let said =
        || format!("{}{}{}", maker.world.read("../run.out"), maker.world.read("../run.err"), holder.world.read("../follow.err"));
    assert!(run.0.wait().unwrap().success(), "{}", said());
    assert!(most > 8 << 20 && most < 20 << 20, "{most} bytes were here at a time");
    assert!(maker.world.read("../run.out").contains("stored 1 new, 0 changed"), "{}", said());
    // Nothing is left of it here but its name, and it is not missed.
    assert!(store_len(&maker.world) < 1 << 20 && !maker.world.exists(".git/devops/store/in-flight"));
    assert_eq!(maker.world.sh("gdo git for-each-ref refs/devops/in-flight"), "");
    maker.world.ok(&["status", "--exit-code"]);
    assert!(maker.world.sh("touch other; gdo snapshot").contains("stored 1 new, 0 changed, 1 with new metadata, 0 gone"));
    maker.world.sh("gdo whereis vm/image; gdo check; gdo gc --prune=now; gdo cat HEAD:vm/image | cmp - ../image");
    // The holder keeps it for the commit from now on, and needs no other reason.
    until("the holder hears of the commit", || !is_awaited(&holder.world));
    drop(follow);
    let told = holder.world.sh("gdo gc --prune=now 2>&1; gdo check --data 2>&1");
    assert!(!told.contains("promised"), "{told}");
    // A host with as little room gets it, and it is whole.
    let third = World::new();
    set(&third, &[("policy", "cache"), ("quota", "16M")]);
    maker.add_to(&third, "maker", &key);
    holder.add_to(&third, "holder", &key);
    third.sh("gdo fetch; gdo restore --source maker/main");
    third.sh(&format!("cmp vm/image {}", maker.world.path("../image").display()));
    assert_eq!(third.sh("stat -c %a vm/image"), "600\n");
    assert!(store_len(&third) < 17 << 20);
    // The next version: what did not change is known to the holder, and a file on the disk goes the same way.
    let _follow = Beside::follow(&holder.world);
    maker.world.sh("mkdir vm; cp ../image vm/image; printf more >>vm/image");
    maker
        .world
        .sh("gdo snapshot --hand-over --in-flight 16M --wait 60; gdo status --exit-code; gdo cat HEAD:vm/image | cmp - vm/image");
    assert!(store_len(&maker.world) < 17 << 20, "the store, and what 'cat' cached");
}

#[test]
fn who_waits_for_nobody_comes_to_an_end_and_can_say_the_same_again() {
    let (_key, maker, holder) = two_hosts();
    noise(&maker.world, "image", 1, 24 << 20);
    let hand_over = |wait: &str| maker.world.gdo(&["snapshot", "image", "--hand-over", "--in-flight", "16M", "--wait", wait]);
    let ended = hand_over("2");
    assert_eq!(ended.code, 4, "{}{}", ended.out, ended.err);
    assert!(ended.err.contains("others do not pull: within 2 seconds no part could be given up"), "{}", ended.err);
    assert!(ended.err.contains("'holder' knows of 0 of "), "{}", ended.err);
    assert_eq!(maker.world.sh("gdo git for-each-ref refs/heads"), "", "nothing is committed");
    // Having it is not enough: who does not know why would let it go.
    holder.world.sh(&format!("cp {} image; gdo snapshot; gdo sync --from maker", maker.world.path("image").display()));
    holder.world.sh("gdo git update-ref -d refs/devops/in-flight-of/maker");
    let ended = hand_over("2");
    assert!(ended.code == 4 && ended.err.contains("'holder' knows of 0 of "), "{}", ended.err);
    assert!(store_len(&maker.world) > 8 << 20);
    // Killed in the middle of it, with somebody who pulls.
    let follow = Beside::follow(&holder.world);
    let run = Beside::start(&maker.world, "gdo snapshot -q image --hand-over --in-flight 16M 2>../run.err");
    until("something is on its way", || is_awaited(&holder.world));
    drop(run);
    // An ordinary run does not mind, nor does a clean-up.
    maker.world.sh("echo x >small; gdo snapshot small; gdo check; gdo gc --prune=now; gdo fetch");
    let done = hand_over("60");
    assert_eq!(done.code, 0, "{}{}{}", done.out, done.err, holder.world.read("../follow.err"));
    maker.world.sh("gdo cat HEAD:image | cmp - image");
    drop(follow);
    // A clock that is wrong ends it at once.
    holder.answer_by("GIT_DEVOPS_TIME=1000 gdo serve");
    maker.world.sh("printf more >>image");
    holder.world.sh("gdo sync");
    let _follow = Beside::follow(&holder.world);
    let refused = hand_over("60");
    assert_eq!((refused.code, refused.err.contains("the clocks differ by")), (10, true), "{}", refused.err);
}

#[test]
fn what_is_staged_stays_named_until_it_is_committed() {
    let (_key, maker, holder) = two_hosts();
    let _follow = Beside::follow(&holder.world);
    noise(&maker.world, "../image", 1, 3 << 20);
    maker.world.sh("gdo add --stdin image --hand-over --wait 60 <../image");
    let named = maker.world.sh("gdo git rev-parse refs/devops/in-flight/run");
    assert_eq!(holder.world.sh("gdo git rev-parse refs/devops/in-flight-of/maker"), named);
    maker.world.sh("gdo commit -m staged; gdo cat HEAD:image | cmp - ../image");
    assert_eq!(maker.world.sh("gdo git for-each-ref refs/devops/in-flight"), "");
    until("the holder hears of the commit", || !is_awaited(&holder.world));
    maker.world.sh("gdo cat HEAD:image | cmp - ../image");
}

#[test]
fn a_stream_is_stored_as_a_file_would_be() {
    let world = World::new();
    noise(&world, "large", 1, 400_000);
    world.write("small", "hello\n");
    world.ok(&["snapshot"]);
    world.sh("gdo snapshot --stdin copies/large <large; gdo snapshot --stdin copies/small <small; gdo snapshot --stdin empty </dev/null");
    assert_eq!(
        world.sh("gdo git rev-parse HEAD:copies/large HEAD:copies/small"),
        world.sh("gdo git rev-parse HEAD:large HEAD:small")
    );
    world.sh("gdo cat HEAD:copies/large | cmp - large; gdo status --exit-code");
    assert!(world.sh("gdo snapshot").contains("0 gone"));
    world.sh("gdo restore; cmp copies/large large; test ! -s empty; gdo check --data; git --git-dir .git fsck --strict");
    world.sh("gdo status --exit-code || gdo snapshot; gdo status --exit-code");
    // What is there keeps its owner and mode, and is not written.
    world.sh("chmod 751 small; gdo snapshot; printf new | gdo snapshot --stdin small");
    assert_eq!((world.read("small").as_str(), world.sh("gdo cat HEAD:small").as_str()), ("hello\n", "new"));
    world.sh("gdo restore small; test $(stat -c %a small) = 751; test $(cat small) = new");
    // It may be the first thing that is owned.
    let new = World::new();
    new.sh("mkdir d; chmod 750 d; echo x | gdo add --stdin d/e/x; gdo commit -m x; gdo status --exit-code; gdo restore; test $(stat -c %a d) = 750");
    for (args, code) in [
        (&["snapshot", "--stdin", "copies"][..], 2),
        (&["snapshot", "--stdin", "small/below"], 2),
        (&["snapshot", "--stdin", "."], 2),
        (&["snapshot", "--stdin", "x", "large"], 2),
        (&["snapshot", "--stdin", "../x"], 2),
        (&["add", "--stdin", ".git/x"], 65),
        (&["add", "--stdin", "copies/.git"], 2),
        (&["snapshot", "--wait", "5"], 2),
        (&["snapshot", "--hand-over"], 9),
        (&["add", "--reference", "--hand-over", "large"], 2),
    ] {
        let run = world.gdo(args);
        assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    }
}

#[test]
fn who_promised_its_share_does_not_hand_over() {
    let (_key, maker, _holder) = two_hosts();
    set(&maker.world, &[("policy", "holder")]);
    noise(&maker.world, "image", 1, 1 << 20);
    maker.world.sh("gdo sync 2>/dev/null || true");
    let refused = maker.world.gdo(&["snapshot", "--hand-over"]);
    assert!(refused.code == 2 && refused.err.contains("this host is a holder itself"), "{} {}", refused.code, refused.err);
}

#[test]
fn what_only_looks_as_if_it_were_on_its_way_is_not_taken_over() {
    let (_key, maker, holder) = two_hosts();
    maker.world.write("small", "x");
    maker.world.snapshot();
    // A tree with something else than chunk indexes.
    maker.world.sh("t=$(gdo git rev-parse HEAD^{tree}); \
        gdo git update-ref refs/devops/in-flight/run $(git --git-dir .git -c user.name=x -c user.email=x commit-tree -m x $t)");
    let run = holder.world.gdo(&["sync"]);
    assert!(run.err.contains("what is said to be on its way is not taken over"), "{}{}", run.out, run.err);
    assert_eq!(holder.world.sh("gdo git for-each-ref refs/devops/in-flight-of"), "");
    assert!(holder.world.sh("gdo git for-each-ref refs/remotes").contains("maker/main"));
}
