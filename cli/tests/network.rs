//! Hosts that pull from each other, by a real sshd on the loopback.

use crate::common::World;
use crate::common::sshd::{Key, Server, noise};

#[test]
fn a_repository_is_cloned_and_what_is_new_fetched() {
    let key = Key::new();
    let server = Server::new(&key);
    server.world.write("small", "hello\n");
    server.world.sh("mkdir d; ln -s ../small d/link; chmod 750 d; truncate -s 30M d/holes");
    noise(&server.world, "large", 1, 5 << 20);
    server.world.snapshot();
    let client = World::new();
    let clone = |dir: &str, more: &[&str]| {
        let (address, host_key, key) = (server.address(), server.host_key(), key.path().display().to_string());
        client.gdo(&[&["clone", &address, dir, "--host-key", &host_key, "-i", &key], more].concat())
    };
    // What a clone leaves that was stopped just after its start.
    client.sh("mkdir -p ../copy/.git/devops");
    let run = clone("../copy", &[]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let listing = "cd {}; find . -path ./.git -prune -o -printf '%P %y %m %l %T@ %s\\n' | grep -v '^ ' | sort; b3sum large 2>/dev/null || sha256sum large";
    let shown = |world: &World, dir: &str| world.sh(&listing.replace("{}", dir));
    assert_eq!(shown(&client, "../copy"), shown(&server.world, "."));
    assert_eq!(client.sh("cd ../copy; gdo status --exit-code"), server.world.ok(&["status"]));
    client.sh("cd ../copy; gdo check --data; git fsck --strict; test -z \"$(ls -d .git/devops/state/incoming-* 2>/dev/null)\"");
    // Into a directory with something in it, or over a repository with changes, it is refused; cut short, it goes on.
    client.sh("mkdir -p ../full ../git/.git; touch ../full/x ../git/.git/x; echo mine >../copy/small");
    assert_eq!((clone("../full", &[]).code, clone("../git", &[]).code), (65, 65));
    assert_eq!((clone("../copy", &[]).code, client.read("../copy/small").as_str()), (65, "mine\n"));
    client.sh("touch ../copy/.git/devops/state/cloning");
    assert_eq!((clone("../copy", &[]).code, client.read("../copy/small").as_str()), (0, "hello\n"));
    // So it does when a file could not be written.
    let store = server.world.sh("find \"$PWD\" -type d -path '*store*' -name packs").trim_end().to_owned();
    server.world.sh(&format!("mv {store} {store}.away; mkdir {store}"));
    let cut_short = clone("../part", &[]);
    assert_eq!((cut_short.code, cut_short.out.contains("the same 'gdo clone' again")), (3, true), "{}", cut_short.err);
    assert_ne!(clone("../part", &[]).code, 0);
    server.world.sh(&format!("rmdir {store}; mv {store}.away {store}"));
    assert_eq!(clone("../part", &[]).code, 0);
    assert_eq!(shown(&client, "../part"), shown(&server.world, "."));
    assert_eq!(clone("../part", &[]).code, 65);
    assert_eq!(client.sh("ls ../copy/.git/devops/state"), "enrolled\nindex-checksum\nknown_hosts\nlock\nmirror\nverified\n");
    // What is new comes, and only that.
    noise(&server.world, "large2", 2, 1 << 20);
    server.world.sh("printf more >>large");
    server.world.snapshot();
    let told = client.sh("cd ../copy; gdo fetch; gdo get --source origin/main --json");
    assert!(told.contains("origin/main moved"), "{told}");
    let got: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let bytes = got["hosts"][0]["bytes"].as_u64().unwrap();
    assert!((1 << 20..2 << 20).contains(&bytes), "{told}");
    assert_eq!(got["missing"], 0);
    client.sh("cd ../copy; gdo restore --source origin/main; cmp large2 ${OLDPWD}/../copy/large2");
    assert_eq!(shown(&client, "../copy"), shown(&server.world, "."));
    assert_eq!(client.sh("cd ../copy; gdo fetch"), "");
    // A branch that is gone there is gone here, and what could not be beside it may come in the same run; so may many.
    server.world.sh("gdo git branch side; gdo git branch other/deep");
    client.sh("cd ../copy; gdo fetch | grep 'origin/side new'");
    server.world.sh("gdo git branch -D side; gdo git branch -D other/deep; gdo git branch side/a; gdo git branch other");
    let told = client.sh("cd ../copy; gdo fetch");
    assert_eq!(told, "origin/other/deep gone\norigin/side gone\norigin/other new\norigin/side/a new\n");
    server.world.sh("h=$(gdo git rev-parse HEAD); for i in $(seq 1000); do echo create refs/heads/many/$i $h; done | \
        git --git-dir .git update-ref --stdin");
    assert_eq!(client.sh("cd ../copy; gdo fetch | grep -c 'many/.* new'; gdo check -q"), "1000\n");
}

#[test]
fn a_file_that_nobody_can_read_is_named_and_the_others_come() {
    use git_devops::file::index::{ChunkIndex, Entry};
    use git_devops::id::{ChunkId, FileHash};
    let key = Key::new();
    let server = Server::new(&key);
    for (seed, name) in ["aa", "damaged", "list", "zz"].iter().enumerate() {
        noise(&server.world, name, seed as u64, 200_000);
    }
    server.world.write("d/small", "x");
    server.world.snapshot();
    let blob = |name: &str| server.world.sh(&format!("gdo git rev-parse HEAD:{name}")).trim().to_owned();
    let index_of = |name: &str| server.world.sh(&format!("gdo git cat-file blob HEAD:{name}")).into_bytes();
    // A text that was changed, and one whose list is a chunk that is none.
    let damaged = [&index_of("damaged")[..], b"x\n"].concat();
    let good = ChunkIndex::decode(&index_of("aa")).unwrap();
    let Entry::Chunk { id, .. } = good.entries[0] else { panic!() };
    let entries = vec![Entry::List { id, len: 200_000, lines: 300 }];
    let list = ChunkIndex { hash: FileHash::from_bytes(*ChunkId::of(b"").as_bytes()), entries, ..good }.encode();
    let mut tree = server.world.sh("gdo git ls-tree -r HEAD");
    for (name, text) in [("damaged", damaged), ("list", list)] {
        std::fs::write(server.world.path("../text"), text).unwrap();
        let oid = server.world.sh("git --git-dir .git hash-object -w ../text");
        tree = tree.replace(&blob(name), oid.trim());
    }
    std::fs::write(server.world.path("../listing"), tree).unwrap();
    server.world.sh("cp .git/index ../index; sed 's/ blob / /; s/^\\([0-9]*\\) \\([0-9a-f]*\\)\t/\\1 \\2 0\t/' ../listing | \
        GIT_INDEX_FILE=$PWD/../index git --git-dir .git update-index --index-info; \
        tree=$(GIT_INDEX_FILE=$PWD/../index git --git-dir .git write-tree); \
        gdo git update-ref refs/heads/main $(git --git-dir .git -c user.name=x -c user.email=x commit-tree -m x $tree)");
    let client = World::new();
    server.add_to(&client, "a", &key);
    client.ok(&["fetch"]);
    let run = client.gdo(&["get", "--source", "a/main", "--json"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    let got: serde_json::Value = serde_json::from_str(run.out.trim()).unwrap();
    assert_eq!((&got["unreadable"], &got["missing"]), (&2.into(), &0.into()), "{}", run.out);
    let said = |name: &str| run.err.matches(&format!("warning: '{name}': cannot tell what it lacks: ")).count();
    assert_eq!(["aa", "damaged", "list", "zz"].map(said), [0, 1, 1, 0], "{}", run.err);
    for name in ["aa", "zz"] {
        assert_eq!(client.sh(&format!("gdo cat a/main:{name} | sha256sum")), server.world.sh(&format!("sha256sum <{name}")));
    }
}

/// Passes on what `gdo serve` says and changes one byte of the first chunk; notes each session.
const LIAR: &str = r#"
echo x >>SESSIONS
gdo serve | python3 -c '
import sys
at = 0
while True:
    part = bytearray(sys.stdin.buffer.raw.read(65536))
    if not part: break
    if at <= 300 < at + len(part): part[300 - at] ^= 1
    at += len(part)
    sys.stdout.buffer.write(part); sys.stdout.buffer.flush()
'
"#;

#[test]
fn a_host_that_lied_is_asked_no_more_and_named_once() {
    let key = Key::new();
    let servers = [Server::new(&key), Server::new(&key)];
    for server in &servers {
        // So many chunks that their index is in lists, which come in a round before them.
        noise(&server.world, "large", 1, 400_000);
        server.world.sh("gdo attributes large chunker=fixed:size=64; gdo snapshot -q .");
    }
    let sessions = servers[1].world.path("..").canonicalize().unwrap().join("sessions");
    servers[0].answer_by("sleep 0.7; exec gdo serve");
    servers[1].answer_by(&LIAR.replace("SESSIONS", &sessions.display().to_string()));
    let client = World::new();
    for (server, name) in servers.iter().zip(["honest", "liar"]) {
        server.add_to(&client, name, &key);
    }
    client.ok(&["fetch", "honest"]);
    let run = client.gdo(&["get", "--source", "honest/main"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_eq!(run.err.matches("'liar' was given up: it sent something else for chunk").count(), 1, "{}{}", run.out, run.err);
    // One session keeps the connection, one was for chunks.
    assert_eq!(std::fs::read_to_string(sessions).unwrap(), "x\nx\n");
    assert_eq!(client.sh("gdo cat honest/main:large | sha256sum"), servers[0].world.sh("sha256sum <large"));
}

#[test]
fn what_a_host_says_when_it_refuses_is_told() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 400_000);
    server.world.snapshot();
    let client = World::new();
    server.add_to(&client, "a", &key);
    client.ok(&["fetch"]);
    // Not at once: the connection has to stand before.
    server.answer_by("sleep 1; printf 'a line before\\nerror: the \\033[31mdisk is on fire\\n' >&2; exit 5");
    let run = client.gdo(&["get", "--source", "a/main", "--json"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    let told = r"it ended the connection; the other side says: error: the \u{1b}[31mdisk is on fire";
    let got: serde_json::Value = serde_json::from_str(run.out.trim()).unwrap();
    assert_eq!(got["hosts"][0]["failure"], told, "{}{}", run.out, run.err);
}

#[test]
fn hosts_are_connected_at_the_same_time() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 400_000);
    server.world.snapshot();
    let client = World::new();
    // Each is as far away as a satellite.
    for name in ["a", "b", "c", "d"] {
        let port = server.behind(std::time::Duration::from_secs(3));
        let (host_key, key) = (server.host_key(), key.path().display().to_string());
        client.ok(&["remote", "add", name, &format!("ssh://127.0.0.1:{port}"), "--host-key", &host_key, "-i", &key]);
    }
    for verb in [&["fetch"][..], &["get", "--source", "a/main"]] {
        let started = std::time::Instant::now();
        client.ok(verb);
        assert!(started.elapsed().as_secs() < 9, "{verb:?}: {:?}", started.elapsed());
    }
}

#[test]
fn a_run_that_was_killed_leaves_nothing_that_the_next_one_does_not_clear() {
    let key = Key::new();
    let server = Server::new(&key);
    noise(&server.world, "large", 1, 400_000);
    server.world.snapshot();
    let client = World::new();
    server.add_to(&client, "a", &key);
    client.sh("mkdir -m 700 ../run");
    let at = |script: &str| client.sh(&format!("export XDG_RUNTIME_DIR=$(realpath ../run); {script}"));
    at("gdo fetch; test -z \"$(ls -A ../run)\"");
    server.answer_by("sleep 2; exec gdo serve");
    at("gdo get --source a/main & pid=$!; until ls -d ../run/.gdo-*/s >/dev/null 2>&1; do sleep 0.01; done; kill -9 $pid");
    assert_eq!(at("ls -A ../run | grep -c gdo"), "1\n");
    at("gdo get --source a/main; test -z \"$(ls -A ../run)\"");
}

#[test]
fn many_hosts_bring_a_file_together_and_one_that_lies_or_is_gone_is_named() {
    let key = Key::new();
    let servers: Vec<Server> = (0..3).map(|_| Server::new(&key)).collect();
    for server in &servers {
        noise(&server.world, "large", 1, 8 << 20);
        server.world.snapshot();
    }
    let client = World::new();
    for (server, name) in servers.iter().zip(["a", "b", "c"]) {
        server.add_to(&client, name, &key);
    }
    client.ok(&["fetch"]);
    // Files that only branches of other hosts have need not be here.
    client.ok(&["check"]);
    // One of them damages all of its chunks, one has lost half.
    servers[1].world.sh("for p in $(find .git/devops/store/packs -type f); do chmod 644 $p; \
        head -c 100000 /dev/zero | tr '\\0' x | dd of=$p bs=1 seek=2000000 conv=notrunc status=none; done");
    let run = client.gdo(&["get", "--source", "a/main", "--json"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let got: serde_json::Value = serde_json::from_str(run.out.trim()).unwrap();
    let shares: Vec<u64> = got["hosts"].as_array().unwrap().iter().map(|host| host["chunks"].as_u64().unwrap()).collect();
    assert_eq!(shares.iter().sum::<u64>(), got["chunks"].as_u64().unwrap(), "{}", run.out);
    client.ok(&["restore", "--source", "a/main", "--target", "../out"]);
    assert_eq!(std::fs::read(client.path("../out/large")).unwrap(), std::fs::read(servers[0].world.path("large")).unwrap());
    client.ok(&["check", "--data"]);
    // One that cannot be reached, and one with another key, cost nothing but a warning.
    let other = World::new();
    servers[0].add_to(&other, "a", &key);
    other.ok(&["remote", "add", "gone", "ssh://127.0.0.1:1", "--host-key", &servers[0].host_key()]);
    let (address, key_path) = (servers[1].address(), key.path().display().to_string());
    other.ok(&["remote", "add", "forged", &address, "--host-key", &servers[2].host_key(), "-i", &key_path]);
    let run = other.gdo(&["fetch"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.err.contains("cannot connect to 'gone'") && run.err.contains("cannot connect to 'forged'"), "{}", run.err);
    assert!(run.err.contains("Host key verification failed"), "{}", run.err);
    let run = other.gdo(&["get", "--source", "a/main"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    other.ok(&["restore", "--source", "a/main", "--target", "../out"]);
    // What nobody has is said, and the rest comes.
    let poor = World::new();
    servers[1].add_to(&poor, "b", &key);
    poor.ok(&["fetch", "b"]);
    let run = poor.gdo(&["get", "--source", "b/main"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    assert!(run.err.contains("chunks are with none of these hosts"), "{}", run.err);
    let run = poor.gdo(&["restore", "--source", "b/main", "--target", "../out"]);
    assert_eq!((run.code, run.err.contains("is not present"), poor.exists("../out/large")), (3, true, false), "{}", run.err);
}

#[test]
fn a_key_that_may_pull_may_do_nothing_else() {
    let key = Key::new();
    let server = Server::new(&key);
    server.world.write("secret", "x");
    server.world.snapshot();
    let before =
        server.world.sh("find .git -type f | sort | xargs b3sum 2>/dev/null || find .git -type f | sort | xargs sha256sum");
    let refused: &[&[&str]] = &[
        &[],
        &["id"],
        &["sh", "-c", "id"],
        &["; id"],
        &["$(id)"],
        &["`id`"],
        &["gdo-chunks\nid"],
        &["gdo-chunks; id"],
        &["gdo-chunks --help"],
        &["--help"],
        &["gdo-git-upload-pack '/etc'"],
        &["gdo-git-upload-pack '/' --help"],
        &["git-upload-pack '/'"],
        &["git-receive-pack '/'"],
        &["gdo-git-receive-pack '/'"],
        &["sftp"],
        &["scp -t /tmp"],
        &["internal-sftp"],
    ];
    for command in refused {
        // What begins with a dash, ssh itself would take for an option of its own.
        let run = match command.first().is_some_and(|word| word.starts_with('-')) {
            true => server.world.gdo_asked(&command.join(" ")),
            false => server.ask(&key, command),
        };
        assert_eq!((run.code, run.out.as_str()), (126, ""), "{command:?}: {}", run.err);
        assert!(run.err.contains("may only be used to pull"), "{command:?}: {}", run.err);
    }
    let long = "x".repeat(100_000);
    assert_eq!(server.ask(&key, &[&long]).code, 126);
    // No terminal, no forwarding.
    let absent = [&b"\x0f\0\0\0\x01gdo-chunks\x01\0\x01\0\x25\0\0\0\x02\x01\0\0\0"[..], &[7; 32]].concat();
    std::fs::write(server.world.path("../absent"), absent).unwrap();
    let answer = server.world.sh("SSH_ORIGINAL_COMMAND=gdo-chunks gdo serve <../absent | wc -c");
    assert_eq!(answer.trim(), "28", "a greeting, and that it is not there");
    let answer = server
        .world
        .sh("export GIT_DIR=/nowhere GIT_WORK_TREE=/nowhere GIT_DEVOPS_STORE=/nowhere SSH_ORIGINAL_COMMAND=gdo-chunks; \
         gdo serve <../absent | wc -c");
    assert_eq!(answer.trim(), "28", "the environment, in which others may have a hand, says nothing");
    let run = server.ask(&key, &["gdo-chunks"]);
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{}", run.err);
    let after =
        server.world.sh("find .git -type f | sort | xargs b3sum 2>/dev/null || find .git -type f | sort | xargs sha256sum");
    assert_eq!(before, after, "nothing was written");
    // The system instance has its store elsewhere.
    server
        .world
        .sh("mkdir -p ../sys/etc; gdo -q --root ../sys init --system; echo x >../sys/etc/f; gdo -q --root ../sys snapshot etc");
    let line = server.world.sh(&format!("gdo --root ../sys remote authorize {}.pub", key.path().display()));
    let command = line.split('"').nth(1).unwrap();
    let answer = server.world.sh(&format!("SSH_ORIGINAL_COMMAND=gdo-chunks {command} <../absent | wc -c"));
    assert_eq!(answer.trim(), "28");
}

#[test]
fn what_our_decoders_refuse_does_not_leave_quarantine() {
    let key = Key::new();
    let server = Server::new(&key);
    server.world.write("f", "x");
    server.world.snapshot();
    let client = World::new();
    server.add_to(&client, "a", &key);
    client.ok(&["fetch"]);
    let state = || client.sh("find .git -path .git/devops/state -prune -o -type f -print | sort; gdo git for-each-ref");
    let before = state();
    // Git itself lets the first one through.
    let blob = server.world.sh("echo x | gdo git hash-object -w --stdin");
    let raw_blob: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).unwrap()).collect();
    for (id, head) in [("mode", &b"100666 f\0"[..]), ("", b"0100644 f\0"), ("", b"100644 .git\0")] {
        std::fs::write(server.world.path("../raw"), [head, &raw_blob].concat()).unwrap();
        server.world.sh("tree=$(git --git-dir .git hash-object -t tree --literally -w ../raw); \
             gdo git update-ref refs/heads/evil $(GIT_DIR=.git git -c user.name=x -c user.email=x commit-tree -m evil $tree)");
        let run = client.gdo(&["fetch", "--json"]);
        assert_eq!(run.code, 65, "{id}: {}{}", run.out, run.err);
        assert!(run.out.contains(&format!("\"id\":\"{id}")) || id.is_empty(), "{id}: {}{}", run.out, run.err);
        assert_eq!(state(), before, "{id}");
        assert_eq!(client.sh("ls -d .git/devops/state/incoming-* 2>/dev/null || true"), "");
    }
    server.world.sh("gdo git update-ref -d refs/heads/evil");
    client.ok(&["fetch"]);
}

/// A server that speaks git's protocol 2 and advertises what no git has.
const FAKE: &str = r#"
import sys
def say(line): sys.stdout.buffer.write(b'%04x' % (len(line) + 4) + line)
def hear():
    lines = []
    while True:
        head = sys.stdin.buffer.read(4)
        if head in (b'', b'0000'): return lines
        lines.append(b'' if head == b'0001' else sys.stdin.buffer.read(int(head, 16) - 4))
for line in (b'version 2
', b'ls-refs=unborn
', b'fetch=shallow
', b'object-format=sha1
'): say(line)
sys.stdout.buffer.write(b'0000'); sys.stdout.buffer.flush()
if any(b'ls-refs' in line for line in hear()):
    say(REF)
    sys.stdout.buffer.write(b'0000'); sys.stdout.buffer.flush()
hear()
"#;

#[test]
fn refs_that_cannot_be_lead_nowhere() {
    let key = Key::new();
    let server = Server::new(&key);
    let client = World::new();
    client.write("f", "x");
    client.snapshot();
    server.add_to(&client, "a", &key);
    let oid = client.ok(&["git", "rev-parse", "HEAD"]);
    let fake = server.world.path("..").canonicalize().unwrap().join("fake.py");
    let line = format!(
        "restrict,command=\"python3 {}\" {}",
        fake.display(),
        std::fs::read_to_string(key.path().with_extension("pub")).unwrap()
    );
    std::fs::write(server.world.path("../authorized_keys"), line).unwrap();
    let before = client.sh("gdo git for-each-ref; cat .git/HEAD");
    for (at, name) in [
        "unborn HEAD symref-target:refs/heads/../../../TARGET",
        "refs/heads/../../../TARGET",
        "refs/heads/a..b",
        "refs/heads/a@{b",
        "refs/heads/a\\x1bb",
        "refs/heads/-x",
        "refs/heads/a.lock",
        "refs/replace/0123456789012345678901234567890123456789",
        "HEAD symref-target:refs/heads/../../../TARGET",
    ]
    .iter()
    .enumerate()
    {
        let reference = if name.starts_with("unborn") { format!("{name}\\n") } else { format!("{} {name}\\n", oid.trim()) };
        std::fs::write(&fake, FAKE.replace("REF", &format!("b'{reference}'"))).unwrap();
        let run = client.gdo(&["fetch"]);
        // Either it is refused, or it is none of what was asked for.
        assert!(matches!(run.code, 0 | 5 | 65), "{name}: {}{}", run.out, run.err);
        assert_eq!(client.sh("gdo git for-each-ref; cat .git/HEAD"), before, "{at} {name}: {}{}", run.out, run.err);
        assert_eq!(client.sh("find .. -name 'TARGET*'"), "", "{name}");
    }
}

#[test]
fn a_server_needs_little_memory_whatever_it_is_asked_for() {
    let world = World::new();
    noise(&world, "large", 1, 40 << 20);
    world.ok(&["attributes", "large", "chunker=fixed:size=4194304"]);
    world.ok(&["snapshot", "-q", "."]);
    let ids = world.sh("gdo chunk --chunker fixed:size=4194304 large | awk '{print $3}'");
    let hashes: Vec<u8> = ids
        .lines()
        .flat_map(|id| (0..32).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<u8>>())
        .collect();
    assert_eq!(hashes.len(), 32 * 10);
    let frame = |kind: u8, body: &[u8]| [&(body.len() as u32 + 1).to_le_bytes()[..], &[kind], body].concat();
    let mut asked = frame(1, b"gdo-chunks\x01\0\x01\0");
    for number in 0..2u32 {
        asked.extend(frame(2, &[&number.to_le_bytes()[..], &hashes.repeat(10)].concat()));
    }
    std::fs::write(world.path("../asked"), asked).unwrap();
    let n_bytes = world.sh("SSH_ORIGINAL_COMMAND=gdo-chunks /usr/bin/time -f %M -o ../peak gdo serve <../asked | wc -c");
    assert!(n_bytes.trim().parse::<u64>().unwrap() > 2 * 10 * (40 << 20), "{n_bytes}");
    let peak = world.read("../peak");
    assert!(peak.trim().parse::<u64>().unwrap() < 64 << 10, "{peak} KiB");
}

#[test]
fn what_is_no_host_and_no_key_is_refused_before_anything_is_started() {
    let world = World::new();
    let good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHV5cGxhY2Vob2xkZXJrZXlwbGFjZWhvbGRlcmtleXBs";
    for address in ["-oProxyCommand=touch pwned", "h; touch pwned", "ext::sh -c 'touch pwned'", "h\nProxyCommand touch pwned", ""]
    {
        let run = world.gdo(&["remote", "add", "--host-key", good, "--", "x", address]);
        assert_eq!(run.code, 65, "{address:?}: {}", run.err);
        assert!(run.err.contains("refused: host-syntax: "), "{}", run.err);
    }
    for key in ["x y", "ssh-ed25519 short", "ssh-ed25519", "# nothing here", "command=\"x\" ssh-ed25519 AAAA"] {
        assert_eq!(world.gdo(&["remote", "add", "x", "host", "--host-key", &format!("{key} ")]).code, 2, "{key}");
        assert_eq!(world.gdo(&["remote", "authorize", &format!("{key} ")]).code, 2, "{key}");
    }
    for name in ["../x", "-x", "a b", "a/b", "x.lock", "", "a..b"] {
        assert_eq!(world.gdo(&["remote", "add", "--host-key", good, "--", name, "host"]).code, 2, "{name:?}");
    }
    assert_eq!(world.ok(&["remote", "list"]), "");
    world.ok(&["remote", "add", "web1", "ann@web1.example.org", "--host-key", good]);
    world.ok(&["remote", "add", "web1", "ssh://web2:2222", "--host-key", &format!("web2 {good} comment")]);
    assert_eq!(world.ok(&["remote", "list"]), "web1\tssh://web2:2222\n");
    assert_eq!(world.read(".git/devops/state/known_hosts"), format!("web1 {good}\n"));
    world.ok(&["check"]);
    world.ok(&["remote", "remove", "web1"]);
    assert_eq!((world.ok(&["remote", "list"]), world.read(".git/devops/state/known_hosts")), (String::new(), String::new()));
    assert_eq!(world.gdo(&["remote", "remove", "web1"]).code, 9);
    assert_eq!(world.gdo(&["fetch"]).code, 9);
}

#[test]
fn an_up_takes_no_byte_that_is_not_what_the_commit_says_whoever_sends_it() {
    let key = Key::new();
    let servers = [Server::new(&key), Server::new(&key)];
    for server in &servers {
        noise(&server.world, "large", 1, 4 << 20);
        server.world.write("small", "small\n");
        server.world.snapshot();
    }
    let sessions = servers[0].world.path("..").canonicalize().unwrap().join("sessions");
    servers[0].answer_by(&LIAR.replace("SESSIONS", &sessions.display().to_string()));
    let host = World::new();
    servers[0].add_to(&host, "liar", &key);
    let told = "'liar' was given up: it sent something else for chunk";
    let refused = host.gdo(&["up", "--to", "liar/main"]);
    assert_eq!((refused.code, refused.err.contains(told)), (9, true), "{}", refused.err);
    assert_eq!(host.sh("ls -A"), ".git\n", "no byte was written");
    servers[1].add_to(&host, "honest", &key);
    servers[1].answer_by("sleep 0.7; exec gdo serve");
    let done = host.gdo(&["up", "--to", "liar/main"]);
    assert_eq!((done.code, done.err.contains(told)), (0, true), "{}{}", done.out, done.err);
    assert_eq!((host.read("small"), host.sh("sha256sum <large")), ("small\n".into(), servers[1].world.sh("sha256sum <large")));
}
