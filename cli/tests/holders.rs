//! Holders that share chunks, promise to keep them, and give up copies that others hold; by a real sshd on the loopback.

use crate::common::World;
use crate::common::sshd::{Key, Server, noise};
use serde_json::Value;

/// Hosts that all pull from each other, `a`, `b` and so on.
fn mesh(n: usize, settings: &[(&str, &str)]) -> (Key, Vec<Server>) {
    let key = Key::new();
    let servers: Vec<Server> = (0..n).map(|_| Server::new(&key)).collect();
    for (at, server) in servers.iter().enumerate() {
        for (other, name) in servers.iter().zip(NAMES).enumerate().filter(|(other, _)| *other != at).map(|(_, pair)| pair) {
            other.add_to(&server.world, name, &key);
        }
        set(&server.world, &[&[("name", NAMES[at])], settings].concat());
    }
    (key, servers)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn set(world: &World, settings: &[(&str, &str)]) {
    settings.iter().for_each(|(key, value)| drop(world.sh(&format!("git config --file .git/config devops.{key} {value}"))));
}

fn json(world: &World, args: &[&str]) -> Value {
    let run = world.gdo(&[args, &["--json"]].concat());
    serde_json::from_str(run.out.trim()).unwrap_or_else(|_| panic!("{args:?}: {} {}{}", run.code, run.out, run.err))
}

#[test]
fn a_file_is_striped_over_holders_and_what_others_hold_can_be_dropped() {
    let (_key, servers) = mesh(3, &[("copies", "1"), ("maxSkew", "1"), ("capacity", "10")]);
    let worlds: Vec<&World> = servers.iter().map(|server| &server.world).collect();
    noise(worlds[0], "large", 1, 12 << 20);
    worlds[0].snapshot();
    let first = json(worlds[0], &["sync"]);
    assert_eq!((&first["holders"], &first["surplus"], &first["missing"]), (&1.into(), &0.into(), &0.into()), "{first}");
    let all = first["share"].as_u64().unwrap();
    assert!(all > 100, "{first}");
    let second = json(worlds[1], &["sync"]);
    assert_eq!((&second["holders"], &second["missing"]), (&2.into(), &0.into()), "{second}");
    let got = second["chunks"].as_u64().unwrap();
    assert!(got > all / 4 && got < all * 3 / 4, "about half of {all}: {second}");
    let third = json(worlds[2], &["sync"]);
    assert_eq!((&third["holders"], &third["missing"]), (&3.into(), &0.into()), "{third}");
    let got = third["chunks"].as_u64().unwrap();
    assert!(got > all / 6 && got < all / 2, "about a third of {all}: {third}");
    assert_eq!(json(worlds[1], &["sync"])["chunks"], 0, "a new holder makes nobody else get anything");
    // What is here and everywhere, without asking anybody.
    worlds[0].ok(&["fetch"]);
    let file = json(worlds[0], &["whereis", "large"])["files"][0].clone();
    assert_eq!(
        (&file["chunks"], &file["here"], &file["holders"].as_array().unwrap().len()),
        (&all.into(), &all.into(), &2),
        "{file}"
    );
    assert_eq!(file["holders"][0]["promised"], true, "{file}");
    worlds[0].ok(&["whereis"]);
    let status = json(worlds[0], &["status", "--holders", "--exit-code"]);
    let names: Vec<&str> = status["holders"].as_array().unwrap().iter().map(|holder| holder["name"].as_str().unwrap()).collect();
    assert!(NAMES.iter().all(|name| names.contains(name)) && status["under"] == serde_json::json!([]), "{status}");
    // Nothing goes that is promised still; then what is not of the share goes.
    let dropped = json(worlds[0], &["drop", "--surplus"]);
    let surplus = dropped["lapsing"].as_u64().unwrap();
    assert!((dropped["removed"] == 0) && surplus > all / 2, "{dropped}");
    assert!(dropped["due"].as_u64().unwrap() > 86_000, "{dropped}");
    let tomorrow = worlds[0].sh("expr $(date +%s) + 90000");
    for world in &worlds[1..] {
        world.sh(&format!("GIT_DEVOPS_TIME={} gdo sync", tomorrow.trim()));
    }
    let refused = worlds[0].sh(&format!("GIT_DEVOPS_TIME={} gdo drop 2>&1 || echo code $?", tomorrow.trim()));
    assert!(refused.contains("the clocks differ by") && refused.contains("code 10"), "{refused}");
    assert_eq!(n_chunks_of(worlds[0], "large"), all, "nothing went");
    // All clocks go on.
    for server in &servers[1..] {
        server.answer_by(&format!("GIT_DEVOPS_TIME={} gdo serve", tomorrow.trim()));
    }
    let dry = worlds[0].sh(&format!("GIT_DEVOPS_TIME={} gdo drop -n --json", tomorrow.trim()));
    assert!(dry.contains("\"removed\":0"), "{dry}");
    let done = worlds[0].sh(&format!("GIT_DEVOPS_TIME={} gdo drop --json", tomorrow.trim()));
    let done: Value = serde_json::from_str(done.trim()).unwrap();
    assert_eq!((&done["removed"], &done["kept"]), (&surplus.into(), &0.into()), "{done}");
    assert!(done["freed_bytes"].as_u64().unwrap() > 4 << 20, "{done}");
    assert_eq!(n_chunks_of(worlds[0], "large"), all - surplus);
    worlds[0].sh("gdo check 2>&1 | grep -q 'not present' || gdo check");
    // The others still have everything between them.
    worlds[0].sh("gdo get large && gdo restore --target ../out large && cmp large ../out/large");
    assert_eq!(n_chunks_of(worlds[0], "large"), all);
    worlds[0].ok(&["check", "--data"]);
}

fn n_chunks_of(world: &World, path: &str) -> u64 {
    json(world, &["whereis", path])["files"][0]["here"].as_u64().unwrap()
}

#[test]
fn the_last_copies_stay() {
    let (_key, mut servers) = mesh(3, &[("copies", "2"), ("maxSkew", "1")]);
    let a = &servers[0].world;
    noise(a, "large", 1, 2 << 20);
    a.write("small", "x");
    a.snapshot();
    let all = n_chunks_of(a, "large");
    // This one is no holder: it never promised anything.
    set(a, &[("policy", "cache"), ("quota", "1G")]);
    assert_eq!(a.gdo(&["sync"]).code, 2);
    let kept = |servers: &[Server], why: &str| {
        let a = &servers[0].world;
        let run = a.gdo(&["drop", "large", "--json"]);
        let dropped: Value = serde_json::from_str(run.out.trim()).unwrap_or_default();
        assert_eq!(
            (run.code, &dropped["removed"], &dropped["kept"]),
            (3, &0.into(), &all.into()),
            "{why}: {}{}",
            run.out,
            run.err
        );
        assert_eq!(n_chunks_of(a, "large"), all, "{why}");
    };
    kept(&servers, "nobody has any");
    servers[1].world.ok(&["sync"]);
    kept(&servers, "one other holds it, two are needed");
    servers[2].world.ok(&["fetch"]);
    servers[2].world.ok(&["get", "--source", "a/main"]);
    kept(&servers, "another one has it, and promises nothing");
    servers[2].world.ok(&["sync"]);
    let packs = "cd .git/devops/store; mv packs away; mkdir packs; mv index index.away; mkdir index";
    servers[2].world.sh(packs);
    kept(&servers, "one promises what it has lost");
    servers[2].world.sh("cd .git/devops/store; rm -rf packs index; mv away packs; mv index.away index");
    servers[2].world.sh("for p in $(find .git/devops/store/packs -type f); do chmod 644 $p; \
        for at in $(seq 0 3000 2090000); do printf rot | dd of=$p bs=1 seek=$at conv=notrunc status=none; done; done");
    kept(&servers, "one promises what has rotted");
    servers[2].world.sh("gdo check --repair >/dev/null || true; gdo sync");
    // One that cannot be reached does not count, whatever it told before.
    a.ok(&["fetch"]);
    let file = json(a, &["whereis", "large"])["files"][0].clone();
    assert_eq!((&file["fewest_copies"], &file["under"]), (&2.into(), &0.into()), "{file}");
    servers[2].stop();
    let a = &servers[0].world;
    let run = a.gdo(&["drop", "large", "--json"]);
    assert_eq!((run.code, n_chunks_of(a, "large")), (3, all), "{}{}", run.out, run.err);
    assert_eq!(json(a, &["whereis", "large"])["files"][0]["fewest_copies"], 2, "what it told is known still");
    servers[2].restart();
    let a = &servers[0].world;
    let dropped = json(a, &["drop", "large"]);
    assert_eq!((&dropped["removed"], &dropped["kept"]), (&all.into(), &0.into()), "{dropped}");
    assert_eq!(n_chunks_of(a, "large"), 0);
    a.ok(&["check"]);
}

#[test]
fn what_a_holder_tells_counts_if_it_signed_it_and_only_forwards() {
    let (_key, servers) = mesh(2, &[("copies", "1")]);
    let (a, b) = (&servers[0].world, &servers[1].world);
    noise(a, "large", 1, 2 << 20);
    a.snapshot();
    a.ok(&["sync"]);
    b.ok(&["sync"]);
    let of_a = b.ok(&["git", "for-each-ref", "--format=%(refname)", "refs/devops/holders"]);
    let id_a = json(a, &["sync"])["holder"].as_str().unwrap().to_owned();
    let name = format!("refs/devops/holders/{id_a}");
    assert!(of_a.contains(&name), "{of_a}");
    let known = |world: &World| world.ok(&["git", "rev-parse", &name]);
    let old = known(b);
    b.ok(&["fetch"]);
    assert_ne!(known(b), old, "a newer one comes");
    let good = known(b);
    // 'a' tells something else under its own id, in ways that it cannot have signed.
    let tree = |edit: &str| {
        a.sh(&format!(
            "rm -rf ../t; mkdir ../t; export GIT_DIR=.git; git archive {name} | tar -x -C ../t; cd ../t; {edit}; export GIT_DIR={}/.git; \
             export GIT_INDEX_FILE=$GIT_DIR/../../index.tmp; rm -f $GIT_INDEX_FILE; git --work-tree=. add -A .; \
             tree=$(git write-tree); c=$(git -c user.name=x -c user.email=x commit-tree -m x $tree); git update-ref {name} $c",
            a.path(".").canonicalize().unwrap().display()
        ));
    };
    let original = known(a);
    for (edit, id) in [
        ("sed -i 's/^until .*/until 9999999999/; s/^generation .*/generation 99/' record", "promise"),
        ("sed -i 's/^generation .*/generation 99/' record; rm signature", "promise"),
        ("cp record signature; sed -i 's/^generation .*/generation 99/' record", "promise"),
        ("printf 'more' >>held/0; sed -i 's/^generation .*/generation 99/' record", "promise"),
        ("echo x >more", "promise"),
        ("sed -i 's/^name .*/name x y/' record", "promise"),
    ] {
        tree(edit);
        let run = b.gdo(&["fetch"]);
        assert_eq!(run.code, 3, "{edit}: {}", run.err);
        assert!(run.err.contains("is not taken over"), "{edit}: {}", run.err);
        assert_eq!(known(b), good, "{edit} {id}");
        a.ok(&["git", "update-ref", &name, original.trim()]);
    }
    // Under another id it is nobody's.
    a.ok(&["git", "update-ref", &format!("refs/devops/holders/{}", "0".repeat(32)), original.trim()]);
    let run = b.gdo(&["fetch"]);
    assert!(run.code == 3 && run.err.contains("it has another key"), "{}", run.err);
    a.ok(&["git", "update-ref", "-d", &format!("refs/devops/holders/{}", "0".repeat(32))]);
    // An old one again is passed over without a word.
    a.ok(&["git", "update-ref", &name, old.trim()]);
    let run = b.gdo(&["fetch"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(known(b), good);
    // The holder itself learns from the others that it was set back.
    a.sh("sed -i 's/^generation .*/generation 1/' .git/devops/store/promises; \
        head -n4 .git/devops/store/promises >../p; echo end $(b3sum <../p | cut -c1-64) >>../p; cp ../p .git/devops/store/promises");
    let synced = json(a, &["sync"]);
    assert_eq!(synced["missing"], 0, "{synced}");
    b.ok(&["fetch"]);
    assert_ne!(known(b), good, "its next record is newer than all it ever told");
}

#[test]
fn a_holder_keeps_what_it_promised_though_nothing_here_needs_it() {
    let (_key, servers) = mesh(1, &[("copies", "1"), ("maxSkew", "1")]);
    let a = &servers[0].world;
    noise(a, "large", 1, 2 << 20);
    a.snapshot();
    a.ok(&["sync"]);
    a.sh("rm large; gdo snapshot -m gone");
    a.sh("gdo git update-ref -d refs/heads/main; rm -rf .git/logs; gdo check --accept >/dev/null 2>&1 || true");
    let gc = json(a, &["gc", "--prune=now"]);
    assert_eq!(gc["removed_packs"], 0, "{gc}");
    assert!(gc["promised_chunks"].as_u64().unwrap() > 10, "{gc}");
    let later = a.sh("expr $(date +%s) + 90000");
    let gc = a.sh(&format!("GIT_DEVOPS_TIME={} gdo gc --prune=now --json", later.trim()));
    let gc: Value = serde_json::from_str(gc.trim()).unwrap();
    assert!(gc["removed_packs"].as_u64().unwrap() > 0, "{gc}");
    // A damaged ledger promises nothing, loses nothing, and is made anew.
    a.sh("printf x >>.git/devops/store/promises");
    for verb in [&["gc"][..], &["sync"], &["drop"]] {
        let run = a.gdo(verb);
        assert!(run.code == 8 && run.err.contains("'gdo check --repair'"), "{verb:?}: {} {}", run.code, run.err);
    }
    let run = a.gdo(&["check"]);
    assert!(run.code == 8 && run.out.contains("promises"), "{} {}{}", run.code, run.out, run.err);
    a.ok(&["check", "--repair"]);
    let id = json(a, &["sync"])["holder"].clone();
    // One that is gone is no licence to remove.
    a.sh("mv .git/devops/store/promises ../promises");
    for verb in [&["gc", "--prune=now"][..], &["drop"], &["check"]] {
        assert_eq!(a.gdo(verb).code, 8, "{verb:?}");
    }
    a.sh("mv ../promises .git/devops/store/promises; rm .git/devops/store/holder-key.pub");
    assert_eq!(a.gdo(&["sync"]).code, 0, "the public key is made from the private one");
    assert_eq!(json(a, &["sync"])["holder"], id);
}
