//! What a host keeps of what others have, and what it does without.

use std::path::PathBuf;

use crate::common::World;
use crate::common::sshd::{Key, Server, noise};

/// Makes a host that pulls from `server`, has its branches, and follows `policy`.
fn client(server: &Server, key: &Key, policy: &str, quota: Option<&str>) -> World {
    let client = World::new();
    server.add_to(&client, "a", key);
    client.ok(&["fetch"]);
    set(&client, "policy", policy);
    quota.into_iter().for_each(|quota| set(&client, "quota", quota));
    client
}

fn set(world: &World, key: &str, value: &str) {
    world.sh(&format!("git config --file .git/config devops.{key} {value}"));
}

fn bytes(world: &World, path: &str) -> Vec<u8> {
    std::fs::read(world.path(path)).unwrap()
}

/// Returns how many bytes the files below `dir` in the store have.
fn size(world: &World, dir: &str) -> u64 {
    let found = world.sh(&format!("find .git/devops/store/{dir} -type f -printf '%s\\n' 2>/dev/null || true"));
    found.lines().map(|line| line.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_restore_leaves_the_store_as_the_policy_says() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 6 << 20);
    server.world.write("small", "x");
    server.world.snapshot();
    for (policy, quota, kept, cached) in
        [("none", None, false, false), ("cache", Some("16M"), false, true), ("holder", None, true, false)]
    {
        let client = client(&server, &key, policy, quota);
        let told = client.ok(&["restore", "--source", "a/main", "--json"]);
        assert_eq!(bytes(&client, "large"), bytes(&server.world, "large"), "{policy}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert!(told["hosts"][0]["bytes"].as_u64().unwrap() > 6 << 20, "{told}");
        assert_eq!((size(&client, "packs") > 6 << 20, size(&client, "packs") > 0), (kept, kept), "{policy}");
        assert_eq!((size(&client, "cache/packs") > 6 << 20, size(&client, "cache") > 0), (cached, cached), "{policy}");
        client.ok(&["check", "--data"]);
        // What is here comes from here, also when nobody else is there.
        client.sh("rm large; git config --file .git/config devops.remote.a.url ssh://127.0.0.1:1");
        let run = client.gdo(&["cat", "a/main:large"]);
        assert_eq!(run.code, if kept || cached { 0 } else { 9 }, "{policy}: {}", run.err);
        if policy == "none" {
            assert!(run.err.contains("is not present, neither here nor with 'a' (which cannot be reached)"), "{}", run.err);
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let world = World::new();
    for (policy, quota, told) in [
        ("some", None, "it must be 'holder', 'cache' or 'none'"),
        ("cache", None, "'devops.quota' is missing"),
        ("cache", Some("1000k"), "1M or more"),
        ("cache", Some("G"), "1M or more"),
        ("cache", Some("99999999T"), "1M or more"),
        ("holder", Some("-1"), "1M or more"),
    ] {
        set(&world, "policy", policy);
        world.sh("git config --file .git/config --unset devops.quota || true");
        quota.into_iter().for_each(|quota| set(&world, "quota", quota));
        let run = world.gdo(&["status"]);
        assert_eq!((run.code, run.err.contains(told)), (2, true), "{policy} {quota:?}: {}", run.err);
    }
}

#[test]
fn a_cache_keeps_to_its_quota_and_evicts_what_was_used_longest_ago() {
    let key = Key::new();
    let server = Server::new(&key);
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        noise(&server.world, name, seed, 3 << 20);
    }
    noise(&server.world, "big", 5, 20 << 20);
    server.world.snapshot();
    let client = client(&server, &key, "cache", Some("8M"));
    let came = |name: &str| -> u64 {
        let told = client.ok(&["restore", "--source", "a/main", "--target", &format!("../out-{name}"), name, "--json"]);
        assert_eq!(bytes(&client, &format!("../out-{name}/{name}")), bytes(&server.world, name));
        client.sh(&format!("rm -r ../out-{name}"));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["hosts"].as_array().unwrap().iter().map(|host| host["chunks"].as_u64().unwrap()).sum()
    };
    assert!(came("a") > 0 && came("b") > 0);
    assert_eq!((came("b"), came("a")), (0, 0), "both fit, and 'a' was used last");
    assert!(came("c") > 0 && size(&client, "cache") <= 8 << 20);
    assert_eq!(came("a"), 0, "'b' had to go");
    assert!(came("b") > 0);
    // Larger than the quota: it streams through.
    client.sh("gdo cat a/main:big >../big");
    assert!((4 << 20..=8 << 20).contains(&size(&client, "cache")));
    assert_eq!(bytes(&client, "../big"), bytes(&server.world, "big"));
    client.ok(&["check", "--data"]);
    // What rots in it is seen, and comes again.
    let rot = "p=$(ls -S .git/devops/store/cache/packs/*/* | head -1); chmod 644 $p; printf x | dd of=$p bs=1 seek=1000 conv=notrunc status=none";
    client.sh(rot);
    assert_eq!(client.gdo(&["check", "--data"]).code, 8);
    assert_eq!(client.sh("gdo cat a/main:big | sha256sum"), client.sh("sha256sum <../big"));
    client.sh(rot);
    client.sh("gdo check --repair; gdo check --data");
    assert_eq!(size(&client, "cache"), 0);
    // What is made here is no matter of the cache, though the cache has it.
    client.ok(&["restore", "--source", "a/main", "d"]);
    client.ok(&["snapshot", "-q", "."]);
    assert!(size(&client, "packs") > 3 << 20);
    set(&client, "policy", "none");
    client.ok(&["gc"]);
    assert_eq!(size(&client, "cache"), 0);
    client.sh("rm d; git config --file .git/config devops.remote.a.url ssh://127.0.0.1:1; gdo restore; gdo check --data");
    assert_eq!(bytes(&client, "d"), bytes(&server.world, "d"));
}

#[test]
fn a_host_in_the_middle_gives_out_its_cache_and_a_holder_takes_it_over() {
    let key = Key::new();
    let (top, middle) = (Server::new(&key), Server::new(&key));
    noise(&top.world, "large", 1, 3 << 20);
    top.world.snapshot();
    top.add_to(&middle.world, "top", &key);
    middle.world.sh("gdo fetch; gdo git update-ref refs/heads/main top/main");
    set(&middle.world, "policy", "cache");
    set(&middle.world, "quota", "8M");
    middle.world.sh("gdo get");
    assert_eq!((size(&middle.world, "packs"), size(&middle.world, "cache/packs") > 3 << 20), (0, true));
    drop(top);
    let leaf = client(&middle, &key, "none", None);
    leaf.ok(&["restore", "--source", "a/main"]);
    assert_eq!(leaf.gdo(&["get"]).code, 2);
    middle.world.sh("git config --file .git/config --unset devops.policy; gdo get || test $? = 3; gdo check; gdo restore");
    assert!(size(&middle.world, "packs") > 3 << 20);
    assert_eq!(bytes(&middle.world, "large"), bytes(&leaf, "large"));
}

#[test]
fn only_what_the_old_file_lacks_is_fetched_and_a_host_that_lies_changes_nothing() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 8 << 20);
    server.world.snapshot();
    let client = client(&server, &key, "none", None);
    client.ok(&["restore", "--source", "a/main"]);
    client.sh("gdo git update-ref refs/heads/main a/main; gdo status --exit-code; cp large ../old");
    server.world.sh("printf 0123456789 | dd of=large bs=1 seek=5000000 conv=notrunc status=none");
    server.world.snapshot();
    client.ok(&["fetch"]);
    // It damages what is new, and says that it does not have it.
    server.world.sh("for p in $(find .git/devops/store/packs -type f); do cp $p ../$(basename $p); chmod 644 $p; \
        head -c 100000000 /dev/zero | dd of=$p bs=64 seek=1 conv=notrunc status=none count=1500; done");
    let run = client.gdo(&["restore", "--source", "a/main"]);
    assert_eq!((run.code, run.err.contains("neither here nor with 'a'")), (3, true), "{}", run.err);
    assert_eq!(bytes(&client, "large"), bytes(&client, "../old"));
    assert_eq!(client.sh("ls -A"), ".git\nlarge\n");
    server.world.sh("for p in $(find .git/devops/store/packs -type f); do cp ../$(basename $p) $p; done");
    let told = client.ok(&["restore", "--source", "a/main", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(told["hosts"][0]["bytes"].as_u64().unwrap() < 1 << 20, "{told}");
    assert_eq!(bytes(&client, "large"), bytes(&server.world, "large"));
}

#[test]
fn what_is_damaged_here_comes_from_another_host() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 2 << 20);
    server.world.snapshot();
    let client = client(&server, &key, "holder", None);
    client.ok(&["get", "--source", "a/main"]);
    client.sh("for p in $(find .git/devops/store/packs -type f); do chmod 644 $p; \
        printf x | dd of=$p bs=1 seek=1000000 conv=notrunc status=none; done");
    let run = client.gdo(&["restore", "--source", "a/main"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(run.err.contains("1 chunks are damaged here"), "{}", run.err);
    assert_eq!(bytes(&client, "large"), bytes(&server.world, "large"));
}

/// A small filesystem in memory, if we may mount one.
struct Small(PathBuf);

impl Small {
    fn mount(world: &World, name: &str, size: &str) -> Option<Self> {
        let dir = world.path(name);
        std::fs::create_dir(&dir).unwrap();
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&dir).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_file_larger_than_the_disk_is_streamed_within_a_bound_of_memory() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 40 << 20);
    // More entries than one index has, so that there are lists, too.
    server.world.sh("gdo attributes large chunker=fixed:size=8192; gdo snapshot -q .");
    let sum = server.world.sh("sha256sum <large");
    for (policy, quota) in [("none", None), ("cache", Some("4M"))] {
        let client = World::new();
        let Some(_small) = Small::mount(&client, "../small", "5M") else { return };
        client.sh("cd ../small; gdo init -q --store ../small/store");
        let run = |script: &str| client.sh(&format!("cd ../small; {script}"));
        let (address, key_path) = (server.address(), key.path().display().to_string());
        std::fs::write(client.path("../host_key"), server.host_key()).unwrap();
        run(&format!(
            "gdo remote add a {address} --host-key ../host_key -i {key_path}; gdo fetch; git config --file .git/config devops.policy {policy}"
        ));
        quota.into_iter().for_each(|quota| drop(run(&format!("git config --file .git/config devops.quota {quota}"))));
        let streamed = run("/usr/bin/time -f %M -o ../peak gdo cat a/main:large | sha256sum");
        assert_eq!(streamed, sum);
        let peak = client.read("../peak");
        assert!(peak.trim().parse::<u64>().unwrap() < 128 << 10, "{peak} KiB");
        // A cache that would not keep to its quota would fill the disk, and that is told.
        let told = run("gdo cat a/main:large 2>&1 >/dev/null");
        assert_eq!(told, "", "{policy}");
        assert!(policy == "none" || run("du -sb store/cache").split('\t').next().unwrap().parse::<u64>().unwrap() > 2 << 20);
        // It is not restored, because there is no room, and nothing is left behind.
        let restored = client.sh("cd ../small; gdo restore --source a/main >/dev/null 2>&1 || echo $?; ls -A");
        assert_eq!(restored, "4\n.git\nstore\n");
        run("gdo restore --source a/main --target ../out; cmp ../out/large /proc/self/fd/0 <../out/large");
        assert_eq!(client.sh("sha256sum <../out/large"), sum);
    }
}

#[test]
fn a_file_that_is_its_own_store_takes_no_space_twice_and_is_verified_at_each_read() {
    let key = Key::new();
    let server = Server::new(&key);
    let world = &server.world;
    noise(world, "large", 1, 6 << 20);
    world.sh("cp large ../v1; gdo add --reference large; gdo commit -q -m v1; gdo check --data; gdo status --exit-code");
    assert!(size(world, "packs") == 0 && size(world, "references") < 64 << 10);
    world.sh("gdo cat HEAD:large | cmp - ../v1; gdo restore --target ../out; cmp ../out/large ../v1");
    // Touched, and moved away and back, it is the same; and it stays its own store.
    world.sh("touch large; mv large x; cp x large; rm x; gdo snapshot -q; gdo check --data");
    assert_eq!(size(world, "packs"), 0);
    // Others get it from there.
    let leaf = client(&server, &key, "holder", None);
    leaf.ok(&["get", "--source", "a/main"]);
    leaf.ok(&["restore", "--source", "a/main"]);
    assert_eq!(bytes(&leaf, "large"), bytes(world, "../v1"));
    // What was changed in it is lost, said so, and never read for what it was.
    world.sh("printf x | dd of=large bs=1 seek=3000000 conv=notrunc status=none");
    let run = world.gdo(&["check", "--data"]);
    assert!(run.code == 8 && run.out.contains("was changed") && run.out.contains("put the file back"), "{}", run.out);
    let run = world.gdo(&["restore", "--target", "../out2"]);
    assert!(run.code == 8 && run.err.contains("its own store was changed") && !world.exists("../out2/large"), "{}", run.err);
    let poor = client(&server, &key, "none", None);
    assert_eq!(poor.gdo(&["restore", "--source", "a/main"]).code, 3);
    world.sh("truncate -s 1M large");
    assert_eq!((world.gdo(&["check"]).code, world.gdo(&["cat", "HEAD:large"]).code), (8, 8));
    world.sh("rm large");
    assert_eq!((world.gdo(&["check"]).code, world.gdo(&["cat", "HEAD:large"]).code), (8, 9));
    world.sh("cp ../v1 large; gdo check --data");
    // When nothing refers to it any more, neither do we.
    world.sh("gdo rm -q --cached large; gdo commit -q -m gone; gdo git reflog expire --expire=now --all; \
        gdo git update-ref refs/heads/main HEAD; gdo check --data");
    assert!(world.exists("large"));
}

#[test]
fn before_a_file_that_is_its_own_store_goes_its_content_is_kept_elsewhere() {
    let world = World::new();
    noise(&world, "large", 1, 3 << 20);
    world.sh("cp large ../v1; gdo snapshot -q .");
    noise(&world, "large", 2, 3 << 20);
    world.sh("cp large ../v2; gdo add --reference large; gdo commit -q -m v2");
    assert!(size(&world, "packs") < 4 << 20, "the new one is only in the file");
    world.sh("gdo restore --source HEAD~1; cmp large ../v1; gdo check --data; gdo restore; cmp large ../v2");
    for (undo, gone) in
        [("rm -f", "gdo rm -q large"), ("true", "ln -f ../v1 other; gdo snapshot -q; rm -f large; ln other large")]
    {
        world.sh(&format!("gdo restore; gdo add --reference large; {undo} other"));
        world.sh(gone);
        world.sh("gdo restore --source HEAD; cmp large ../v2; gdo check --data");
    }
}

#[test]
fn a_file_larger_than_the_free_disk_is_its_own_store_and_stays_while_there_is_no_room_for_it() {
    let world = World::new();
    let Some(_small) = Small::mount(&world, "../small", "8M") else { return };
    let run = |script: &str| world.sh(&format!("cd ../small; {script}"));
    noise(&world, "../small/large", 1, 6 << 20);
    run(
        "gdo init -q; gdo add large >/dev/null 2>&1 || test $? = 4; gdo add --reference large; gdo commit -q -m big; gdo check --data",
    );
    let refused = run("gdo rm large 2>&1 || echo code $?");
    assert!(refused.contains("code 65") && refused.contains("it is its own store, and there is no room"), "{refused}");
    run("gdo restore; gdo check --data; gdo cat HEAD:large | cmp - large");
}

/// A filesystem of the kind `mkfs` on a loop device, if we may mount one.
struct Image(PathBuf);

impl Image {
    fn mount(world: &World, mkfs: &str) -> Option<Self> {
        let made = world.sh(&format!(
            "if [ $(id -u) = 0 ] && {mkfs} --help >/dev/null 2>&1 || command -v {mkfs} >/dev/null; then
                 truncate -s 400M ../image; {mkfs} -q ../image; mkdir ../on; mount -o loop ../image ../on && echo yes || true
             fi"
        ));
        (made.trim() == "yes").then(|| Self(world.path("../on")))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_the_disk_did_not_take_gets_no_name() {
    let world = World::new();
    // So many that they are synced in more than one go, and more bytes than the disk takes, without anybody being told before a sync.
    world.sh("mkdir d; head -c 60000000 /dev/urandom | split -b 12000 -a 4 - d/f");
    world.snapshot();
    world.sh("mkdir ../small; mount -t tmpfs -o size=40m none ../small 2>/dev/null || true");
    let small = Image(world.path("../small"));
    let mounted = world
        .sh("mountpoint -q ../small && truncate -s 300M ../small/image && mkfs.ext4 -q -O ^has_journal -N 8000 ../small/image &&
         mkdir ../on && mount -o loop ../small/image ../on && echo yes || true");
    if mounted.trim() != "yes" {
        eprintln!("no rights to mount: a disk that fails is NOT covered");
        return;
    }
    let on = Image(world.path("../on"));
    let run = world.gdo(&["restore", "--target", "../on", "-q"]);
    assert_eq!(run.code, 5, "{}", run.err);
    assert!(run.err.contains("cannot sync the target"), "{}", run.err);
    assert_eq!(world.sh("ls -A ../on/d | wc -l").trim(), "0");
    drop(on);
    drop(small);
}

#[test]
fn what_an_old_version_has_is_shared_with_it_where_the_filesystem_can() {
    let world = World::new();
    for mkfs in ["mkfs.xfs", "mkfs.btrfs"] {
        let Some(image) = Image::mount(&world, mkfs) else {
            eprintln!("no {mkfs} or no rights: shared blocks are NOT covered");
            return;
        };
        noise(&world, "../on/large", 1, 40 << 20);
        // Data, a hole, zeros that are data, and an end that the old version does not have.
        let run = |script: &str| world.sh(&format!("cd ../on; {script}"));
        run("mkdir tree; mv large tree; cd tree; truncate -s 44M large; dd if=/dev/zero of=large bs=1M seek=42 count=1 conv=notrunc status=none
             gdo init -q --store ../../store; gdo snapshot -q .; sha256sum large >../sum");
        // An old version with other bytes, without the hole, with a hole where data was, and shorter.
        run("cd tree; printf other | dd of=large bs=1 seek=20000000 conv=notrunc status=none
             head -c 1M /dev/urandom | dd of=large bs=1M seek=41 conv=notrunc status=none
             fallocate -p -o 44040192 -l 1048576 large; truncate -s 45200000 large; cp --reflink=always large ../old; sync");
        let used = || run("sync; df -k --output=used . | tail -1").trim().parse::<u64>().unwrap();
        let before = used();
        run("cd tree; gdo restore -q; sha256sum --quiet -c ../sum");
        let grown = used().saturating_sub(before);
        assert!(grown < 6 << 10, "{mkfs}: {grown} KiB more");
        // With every hole where it was: else its chunks would be cut otherwise.
        let told = run("cd tree; gdo status");
        assert!(told.contains("nothing differs"), "{mkfs}: {told}");
        drop(image);
        world.sh("rm -rf ../on ../image ../store");
    }
}
