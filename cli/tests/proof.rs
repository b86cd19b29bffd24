//! Whether hosts are alike: fingerprints, reports that travel with fetches, and what is told of a fleet.

use crate::common::World;
use crate::common::sshd::{Key, Server};

/// A host with an sshd, and the key by which it pulls.
struct Host {
    name: &'static str,
    server: Server,
    key: Key,
}

impl Host {
    fn new(name: &'static str) -> Self {
        let key = Key::new();
        let server = Server::new(&key);
        server.world.sh(&format!("git config --file .git/config devops.name {name}"));
        Self { name, server, key }
    }

    fn world(&self) -> &World {
        &self.server.world
    }

    fn pulls_from(&self, other: &Self) {
        other.server.authorize(&self.key);
        other.server.add_to(self.world(), other.name, &self.key);
    }

    fn up(&self, from: &Self) {
        self.world().ok(&["up", "--to", &format!("{}/main", from.name)]);
    }
}

/// Brings the branch of one directory to another.
fn send(from: &World, to: &World) {
    to.sh(&format!("git -C .git fetch -q '{}' '+refs/heads/*:refs/remotes/o/*'", from.path(".git").display()));
}

fn fingerprint(world: &World) -> String {
    world.ok(&["fingerprint"])
}

#[test]
fn hosts_with_the_same_files_look_the_same_whatever_their_times() {
    let origin = World::new();
    origin.write("etc/conf", "one\n");
    origin.sh("chmod 640 etc/conf; ln -s conf etc/link; mkdir etc/empty; truncate -s 3M etc/disk; echo x >> etc/disk");
    origin.snapshot();
    let target = World::new();
    send(&origin, &target);
    target.sh(&format!("cp -a '{}'/. .git/devops/store/", origin.path(".git/devops/store").display()));
    target.ok(&["up", "--offline", "--to", "o/main"]);
    let same = fingerprint(&origin);
    assert_eq!(same.trim().len(), 64);
    assert_eq!(fingerprint(&target), same);
    assert_eq!(origin.ok(&["fingerprint", "HEAD"]), same);
    target.sh("touch etc/conf etc");
    assert_eq!(fingerprint(&target), same, "times are no difference");
    // Each of these is one, and without it the host is as before.
    let changes = [
        ("echo two > etc/conf", "printf 'one\\n' > etc/conf"),
        ("chmod 600 etc/conf", "chmod 640 etc/conf"),
        ("chmod 700 etc/empty", "chmod 755 etc/empty"),
        ("rmdir etc/empty", "mkdir etc/empty"),
        ("ln -sfn other etc/link", "ln -sfn conf etc/link"),
        ("setfattr -n user.a -v b etc/conf", "setfattr -x user.a etc/conf"),
        ("chown 1 etc/conf", "chown 0 etc/conf"),
        (
            "printf y | dd of=etc/disk bs=1 seek=5 conv=notrunc status=none",
            "printf '\\0' | dd of=etc/disk bs=1 seek=5 conv=notrunc status=none",
        ),
    ];
    for (there, back) in changes {
        target.sh(there);
        assert_ne!(fingerprint(&target), same, "{there}");
        target.sh(back);
        if !there.contains("dd") {
            assert_eq!(fingerprint(&target), same, "{back}");
        }
    }
}

#[test]
fn what_is_left_to_the_host_is_no_difference() {
    let host = World::new();
    host.ok(&["attributes", "/etc/log", "volatile"]);
    host.ok(&["attributes", "/etc/own", "seed"]);
    host.ok(&["attributes", "/etc/cache", "derived"]);
    ["log", "own", "cache", "conf"].iter().for_each(|name| host.write(&format!("etc/{name}"), "x\n"));
    host.ok(&["snapshot", "-m", "x", "."]);
    let same = fingerprint(&host);
    ["log", "own", "cache"].iter().for_each(|name| host.write(&format!("etc/{name}"), "other\n"));
    assert_eq!(fingerprint(&host), same);
    host.write("etc/conf", "other\n");
    assert_ne!(fingerprint(&host), same);
}

#[test]
fn what_is_not_owned_is_neither_told_nor_stored() {
    let host = World::new();
    host.write("etc/conf", "x\n");
    host.ok(&["snap", "-q", "."]);
    host.ok(&["ci", "-q"]);
    let same = fingerprint(&host);
    let n_packs = || host.sh("ls .git/objects/pack | wc -l; find .git/objects -type f | wc -l");
    let before = n_packs();
    host.sh("echo private > etc/mine; chmod 600 etc/mine; mkfifo etc/pipe; mkdir etc/dir; echo more > etc/dir/more; echo own >> etc/conf");
    let other = fingerprint(&host);
    assert_ne!(other, same, "what is owned counts");
    host.sh("rm -r etc/mine etc/pipe etc/dir");
    assert_eq!(fingerprint(&host), other);
    assert_eq!(n_packs(), before, "a look writes nothing");
}

#[test]
fn a_fleet_reports_and_is_compared_by_pull_alone() {
    let [admin, one, two] = ["admin", "one", "two"].map(Host::new);
    admin.world().write("etc/conf", "first\n");
    admin.world().write("etc/other", "other\n");
    admin.world().snapshot();
    for host in [&one, &two] {
        host.pulls_from(&admin);
        admin.pulls_from(host);
        host.up(&admin);
    }
    let fleet = admin.world().ok(&["fleet"]);
    assert!(fleet.contains("2 hosts, all in step") && fleet.contains("one  ") && fleet.contains("congruent"), "{fleet}");
    assert!(admin.world().ok(&["compare", "one", "two"]).contains("are alike"));
    // One is changed by hand, the other is left behind.
    one.world().write("etc/conf", "by hand\n");
    one.world().sh("rm etc/other");
    assert!(admin.world().ok(&["compare", "one"]).contains("as it reported at"));
    admin.world().write("etc/new", "new\n");
    admin.world().snapshot();
    let halted = one.world().gdo(&["up", "--to", "admin/main", "--quiet"]);
    assert_eq!(halted.code, 0, "nothing of it is in the way: {}", halted.err);
    let told = admin.world().gdo(&["fleet", "--exit-code"]);
    assert_eq!(told.code, 1);
    assert!(
        told.out.contains("2 not as applied") && told.out.contains("behind") && told.out.contains("2 hosts, 2 not in step"),
        "{}",
        told.out
    );
    let json: serde_json::Value = serde_json::from_str(&admin.world().ok(&["--json", "fleet", "--offline"])).unwrap();
    assert_eq!(json[0]["name"], "one");
    assert_eq!((&json[0]["drift"], &json[1]["drift"]), (&2.into(), &0.into()));
    assert_eq!(json[1]["not_in_step"], serde_json::json!(["behind"]));
    let differs = admin.world().gdo(&["compare", "one", "two"]);
    assert_eq!(differs.code, 1);
    let lines: Vec<&str> = differs.out.lines().filter(|line| line.contains("etc/")).collect();
    assert_eq!(lines, ["M etc/conf", "D etc/new", "A etc/other"], "{}", differs.out);
    // What was put right is told, too.
    one.world().ok(&["fix", "--all"]);
    two.up(&admin);
    assert!(admin.world().ok(&["fleet"]).contains("all in step"));
    assert!(admin.world().ok(&["compare", "one", "two"]).contains("are alike"));
    let here = admin.world().gdo(&["compare", "one"]);
    assert_eq!(here.code, 0, "{}", here.out);
    // A report travels over others, too; what is forgotten is gone here.
    two.pulls_from(&one);
    let heard = two.world().ok(&["fleet"]);
    assert!(heard.contains("one  "), "{heard}");
    admin.world().ok(&["fleet", "--forget", "two"]);
    assert!(!admin.world().ok(&["fleet", "--offline"]).contains("two  "));
    assert_eq!(admin.world().gdo(&["compare", "two"]).code, 9);
}

#[test]
fn what_a_host_took_back_is_seen_from_afar_and_healed_by_a_revert() {
    let [admin, one] = ["admin", "one"].map(Host::new);
    one.pulls_from(&admin);
    admin.pulls_from(&one);
    for version in ["first", "second", "third"] {
        admin.world().write("etc/conf", &format!("{version}\n"));
        admin.world().snapshot();
        one.up(&admin);
    }
    one.world().ok(&["rollback", "1"]);
    assert_eq!(one.world().read("etc/conf"), "second\n");
    let told = admin.world().gdo(&["fleet", "--exit-code"]);
    assert_eq!(told.code, 1);
    assert!(told.out.contains("held"), "{}", told.out);
    // What takes the commit back heals this host, and all others.
    admin.world().ok(&["revert", "HEAD"]);
    assert_eq!(admin.world().read("etc/conf"), "second\n");
    one.world().ok(&["unhold"]);
    one.up(&admin);
    assert_eq!(one.world().read("etc/conf"), "second\n");
    assert!(admin.world().ok(&["fleet"]).contains("all in step"));
}

#[test]
fn a_report_that_is_forged_or_old_is_not_taken_over() {
    let [admin, one] = ["admin", "one"].map(Host::new);
    admin.world().write("etc/conf", "first\n");
    admin.world().snapshot();
    one.pulls_from(&admin);
    admin.pulls_from(&one);
    one.up(&admin);
    admin.world().ok(&["fetch"]);
    let name = one.world().sh("git -C .git for-each-ref --format='%(refname)' refs/devops/reports").trim().to_owned();
    let first = one.world().sh(&format!("git -C .git rev-parse {name}")).trim().to_owned();
    one.world().write("etc/conf", "drift\n");
    one.world().ok(&["up", "--to", "admin/main"]);
    admin.world().ok(&["fetch"]);
    let second = admin.world().sh(&format!("git -C .git rev-parse {name}")).trim().to_owned();
    assert_ne!(first, second);
    // The old one again: passed over. Another text under the signature of the first: refused, and said.
    one.world().sh(&format!("git -C .git update-ref {name} {first}"));
    admin.world().ok(&["fetch"]);
    assert_eq!(admin.world().sh(&format!("git -C .git rev-parse {name}")).trim(), second);
    let forge = format!(
        "cd .git; text=$(git cat-file blob {second}:report | sed 's/^generation .*/generation 9999999999/; s/^drift .*/drift 0/; /^differs/d' | git hash-object -w --stdin); \
         sig=$(git rev-parse {second}:signature); tree=$(printf '100644 blob %s\\treport\\n100644 blob %s\\tsignature\\n' $text $sig | git mktree); \
         git update-ref {name} $(git -c user.name=x -c user.email=x commit-tree -m report $tree)"
    );
    one.world().sh(&forge);
    let forged = admin.world().gdo(&["fetch"]);
    assert!(forged.code != 0 || forged.err.contains("is not taken over"), "{}", forged.err);
    assert!(forged.err.contains("signature"), "{}", forged.err);
    assert_eq!(admin.world().sh(&format!("git -C .git rev-parse {name}")).trim(), second);
}

#[test]
fn a_host_that_was_away_becomes_like_one_that_took_each_commit() {
    let [admin, one, two] = ["admin", "one", "two"].map(Host::new);
    admin.world().write("etc/conf", "first\n");
    admin.world().snapshot();
    for host in [&one, &two] {
        host.pulls_from(&admin);
        admin.pulls_from(host);
        host.up(&admin);
    }
    for round in 0..3 {
        admin.world().sh(&format!(
            "for n in $(seq 4); do echo {round} $n > etc/conf; echo {round} > etc/file$n; ln -f etc/conf etc/link$n; rm -f etc/gone; gdo snap -q; done
            gdo exec -q -- sh -c 'echo {round} >> etc/made; chmod 60{n} etc/made'; mkdir -p dir/{round}; echo > etc/gone; gdo ci -q",
            n = round % 8
        ));
        one.up(&admin);
    }
    admin.world().ok(&["fetch", "-q"]);
    let differs = admin.world().gdo(&["compare", "one", "two"]);
    assert_eq!(differs.code, 1, "one of them was away: {}", differs.err);
    two.up(&admin);
    admin.world().ok(&["fetch", "-q"]);
    assert!(admin.world().ok(&["compare", "one", "two"]).contains("are alike"));
    assert_eq!(fingerprint(one.world()), fingerprint(two.world()));
}
