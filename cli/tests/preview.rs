//! `gdo exec -n`: what a command would change, without changing it.

use crate::common::pair::Pair;
use crate::common::root::{make_root, sh};
use crate::common::{Run, World};

/// What there is of a tree, with everything that a command could change but the times of directories.
const DIGEST: &str = "find . -path ./.git -prune -o ! -type d -printf '%p %y %m %U %G %s %T@ %l\\n' -o -printf '%p %m %U %G\\n' | sort; git -C .git for-each-ref; \
                      find . -path ./.git -prune -o -type f -exec sha256sum {} + | sort; cat $(find .git/devops -name log)";

/// Runs a script as a preview in `world`; returns the run, and the lines with paths from the top of the work tree.
fn preview(world: &World, options: &[&str], script: &str) -> (Run, Vec<String>) {
    let before = world.sh(DIGEST);
    let run = world.gdo(&[&["exec", "-n"], options, &["--", "sh", "-ec", script]].concat());
    assert_eq!(world.sh(DIGEST), before, "{script}: {}", run.err);
    let top = format!("{}/", world.path("").canonicalize().unwrap().display()).replace("//", "/");
    let is_change = |line: &&str| line.starts_with(['A', 'M', 'm', 'D']) && line[1..].starts_with(' ');
    let lines = run.out.lines().filter(is_change).map(|line| line.replacen(&top, "", 1)).collect();
    (run, lines)
}

fn origin() -> World {
    let world = Pair::new().origin;
    world.sh("mkdir -p dir/sub gone; echo 1 > dir/one; echo 2 > dir/sub/two; echo 3 > gone/three; ln -s one dir/link; echo same > same; setfattr -n user.colour -v red same");
    world.ok(&["snap", "."]);
    world.ok(&["ci"]);
    world
}

#[test]
fn each_change_is_named_and_none_is_made() {
    let world = origin();
    let script = "echo new > made; mkdir -p deep/er; echo x > deep/er/x; echo more >> etc/conf; printf 'ot\\0er\\n' > etc/other; chmod 600 dir/one
        rm -r gone; ln -sf two dir/link; rm -r dir/sub; mkdir dir/sub; echo 9 > dir/sub/nine; setfattr -n user.colour -v blue same; rm same.none 2> /dev/null || true";
    let (run, lines) = preview(&world, &[], script);
    assert_eq!(run.code, 0, "{}", run.err);
    let wanted = [
        "A deep",
        "A deep/er",
        "A deep/er/x",
        "M dir/link",
        "m dir/one",
        "A dir/sub/nine",
        "D dir/sub/two",
        "M etc/conf",
        "M etc/other",
        "D gone",
        "A made",
        "m same",
    ];
    assert_eq!(lines, wanted, "{}", run.err);
    assert!(run.out.ends_with("nothing was changed here, and nothing journalled\n"), "{}", run.out);
}

#[test]
fn what_is_only_touched_and_put_back_is_no_change() {
    let world = origin();
    let (run, lines) = preview(
        &world,
        &[],
        "mv dir/one x; mv x dir/one; : >> same; chmod 640 etc/conf; chmod 644 etc/conf; echo 3 > gone/three; touch -d @1 gone/three",
    );
    assert_eq!((run.code, lines), (0, vec!["m gone/three".to_owned()]), "{}", run.err);
}

#[test]
fn a_command_that_fails_says_what_it_had_done() {
    let world = origin();
    let (run, lines) = preview(&world, &[], "echo new > made; echo because; exit 3");
    assert_eq!((run.code, &*lines), (12, &["A made".to_owned()][..]));
    assert!(run.err.contains("would fail: exit code 3") && run.err.contains("because"), "{}", run.err);
    let (run, lines) = preview(&world, &["--ok", "3"], "exit 3");
    assert_eq!((run.code, lines.len()), (0, 0), "{}", run.err);
    let (run, _) = preview(&world, &["--timeout", "1"], "sleep 60");
    assert!(run.code == 12 && run.err.contains("took too long"), "{}", run.err);
    for (script, told) in [("kill -9 $$", "killed by signal 9\n"), ("exit 137", "exit code 137\n")] {
        let (run, _) = preview(&world, &[], script);
        let first = run.err.lines().next().unwrap_or_default().replace("; nothing was changed here", "\n");
        assert!(run.code == 12 && first.ends_with(told), "{script}: {}", run.err);
    }
}

#[test]
fn a_variable_reaches_the_command_and_no_program_on_the_way_to_it() {
    let world = origin();
    // The loader complains for each program that gets it.
    let said = "ERROR: ld.so: object '/no/lib'";
    let options = ["--env", "LD_PRELOAD=/no/lib", "--env", "A= b\n-- c", "--env", "PWD=mine"];
    let words = ["--", "/usr/bin/env", "-0"];
    let count = |text: &str| text.matches(said).count();
    let has_all = |text: &str| ["A= b\n-- c\0", "PWD=mine\0"].iter().all(|variable| text.contains(variable));
    let run = world.gdo(&[&["exec", "-n", "--json", "--cwd", "/dir"], &options[..], &words].concat());
    let answer: serde_json::Value = serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {}", run.err));
    let text = answer["output"].as_str().unwrap();
    assert!(count(text) == 1 && has_all(text), "{text}");
    for (n, user) in [&[][..], &["--user", "nobody"]].iter().enumerate() {
        world.ok(&[&["exec"], *user, &options[..], &words].concat());
        let log = world.ok(&["log", "--host"]);
        let line = log.lines().find(|line| line.contains(" run ")).unwrap();
        let text = world.ok(&["log", "--output", line.split(' ').next().unwrap()]);
        assert!(count(&text) == 1 && has_all(&text), "{n}: {text}");
    }
}

#[test]
fn a_tree_that_is_deeper_than_directories_can_be_open_is_compared() {
    let world = origin();
    let script = "d=deep; for n in $(seq 400); do d=$d/d; done; mkdir -p $d; echo old > $d/old";
    world.sh(script);
    let said =
        world.sh("ulimit -n 256; gdo exec -n -- sh -ec 'cd deep; for n in $(seq 400); do cd d; done; echo new > new; rm old'");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("/d/d/")).map(|line| &line[line.len() - 6..]).collect();
    assert_eq!(lines, ["/d/new", "/d/old"], "{said}");
    assert!(said.lines().any(|line| line.starts_with("A ")) && said.lines().any(|line| line.starts_with("D ")), "{said}");
}

#[test]
fn guards_and_inputs_are_those_of_the_command() {
    let world = origin();
    let (run, lines) = preview(&world, &["--unless", "test -e etc/conf"], "echo new > made");
    assert!(run.code == 0 && lines.is_empty() && run.out.contains("--unless"), "{}", run.err);
    world.sh("echo input > ../in-put");
    let run = world.gdo(&[
        "exec",
        "-n",
        "--json",
        "--input",
        "in=../in-put",
        "--cwd",
        "/dir",
        "--",
        "sh",
        "-ec",
        "cat $0; pwd",
        "${in}/in",
    ]);
    let answer: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let said = answer["output"].as_str().unwrap_or_else(|| panic!("{}{}", run.out, run.err));
    assert!(said.starts_with("input\n/") && said.ends_with("/dir\n") && answer["halt"].is_null(), "{}{}", run.out, run.err);
    let left = world.sh("find .git/devops/state/in .git/devops/state/preview -mindepth 1");
    assert_eq!(left, "", "what the preview needed is gone");
    let refused = world.gdo(&["exec", "-n", "--input", "in=../in-put", "--input", "not=../there", "--", "true"]);
    assert!(refused.code != 0 && refused.err.contains("there"), "{}", refused.err);
    assert_eq!(world.sh("find .git/devops/state/in -mindepth 1"), "", "also after a refusal");
}

#[test]
fn what_is_mounted_is_covered_and_what_runs_is_out_of_reach() {
    let world = origin();
    let script = "echo b > 'mn t/b'; rm 'mn t/a'; chmod 700 'mn t'; sleep 1234.$TAIL & if hostname other || umount 'mn t' || mount -o remount,rw /proc; then exit 8; fi; if kill -0 $VICTIM; then exit 9; fi; test $$ -lt 50; cap=$(sed -n 's/^CapBnd:.//p' /proc/self/status); test $((0x$cap >> 12 & 1)),$((0x$cap >> 25 & 1)) = 0,0";
    let tail = std::process::id();
    let setup = format!(
        "mkdir 'mn t'; sleep 600 > /dev/null 2>&1 & victim=$!; trap 'kill $victim' EXIT
         unshare --mount sh -ec 'mount -t tmpfs t \"mn t\"; echo a > \"mn t/a\"; gdo --quiet exec -n --env VICTIM=$0 --env TAIL={tail} -- sh -ec \"$1\"; cat \"mn t/a\"; ls \"mn t\"' $victim \"{}\"
         hostname; ps ax -o args= | grep -c '^sleep 1234.{tail}' || true",
        script.replace('$', "\\$")
    );
    let name = world.sh("hostname");
    let out = world.sh(&setup);
    let top = world.path("").canonicalize().unwrap();
    let mounted = top.join("mn t").display().to_string();
    assert_eq!(out, format!("m {mounted}\nD {mounted}/a\nA {mounted}/b\na\na\n{name}0\n"));
}

#[test]
fn what_goes_through_the_whole_tree_does_not_meet_the_preview_itself() {
    let world = origin();
    let (run, lines) = preview(&world, &[], "find . > /dev/null; chown -R daemon dir .git/devops/state");
    assert_eq!(run.code, 0, "{}", run.err);
    let owned: Vec<&String> = lines.iter().filter(|line| !line.contains(".git/")).collect();
    assert_eq!(owned, ["m dir", "m dir/link", "m dir/one", "m dir/sub", "m dir/sub/two"], "{}", run.err);
    assert!(!run.out.contains("preview/"), "{}", run.out);
}

#[test]
fn what_can_only_be_read_stays_so_and_a_device_is_out_of_reach() {
    let world = origin();
    let setup = "mkdir ro noexec; echo bound > bound; touch device; echo input > ../in-put
        mount -t tmpfs t ro; echo 1 > ro/old; mount -o remount,ro ro; mount -t tmpfs -o noexec t noexec; cp /bin/true noexec
        mount --bind ../in-put bound; mount --bind /dev/null device; mount -t tmpfs t /run
        mkdir sys; mount --bind /sys sys; mount -t tmpfs t sys/fs
        gdo --quiet exec -n --user nobody --input in=../in-put -- cat '${in}/in' >../said
        gdo exec -n --json -- sh -c 'echo 2 > ro/new; noexec/true && echo ran; echo 3 > bound; echo 4 > device; test -c device || echo none'";
    let out = world.sh(&format!("unshare --mount sh -ec \"{}\"", setup.replace('$', "\\$")));
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
    let top = world.path("").canonicalize().unwrap();
    let at = |name: &str| serde_json::Value::from(top.join(name).display().to_string());
    let said = answer["output"].as_str().unwrap();
    assert!(!said.contains("ran") && said.ends_with("none\n") && said.contains("Permission denied"), "{out}");
    assert_eq!(answer["read_only"], serde_json::json!([at("bound"), at("device")]), "{out}");
    let changes = answer["changes"].as_array().unwrap();
    assert!(changes.iter().all(|change| change["path"] == at("device")), "{out}");
    assert_eq!(world.sh("cat ../in-put"), "input\n");
}

#[test]
fn it_ends_with_the_run_that_began_it() {
    let world = origin();
    let script = "gdo exec -n -- sh -c 'sleep 1235.5; true' > /dev/null 2>&1 & run=$!
         for n in $(seq 500); do ps ax -o args= | grep -q '^sleep 1235.5' && break; sleep 0.02; done
         ps ax -o args= | grep -c '^sleep 1235.5'; kill -9 $run
         for n in $(seq 500); do ps ax -o args= | grep -q '^sleep 1235.5' || break; sleep 0.02; done
         ps ax -o args= | grep -c '^sleep 1235.5' || true";
    assert_eq!(world.sh(&script.replace("1235.5", &format!("1235.{}", std::process::id()))), "1\n0\n");
    // What it read was copied, and goes with the next run.
    world.sh("echo x > ../input");
    let script = script
        .replace("exec -n", "exec -n --user nobody --input kept=../input")
        .replace("1235.5", &format!("1236.{}", std::process::id()));
    world.sh(&script);
    let copies = |world: &World| {
        world.sh("ls .git/devops/state/in; cat /run/git-devops/$(printf %s $PWD/.git/devops/state | b3sum 2>/dev/null | cut -c-16)/*/kept 2>/dev/null || true")
    };
    assert_ne!(copies(&world), "");
    world.ok(&["exec", "-n", "--", "true"]);
    assert_eq!(copies(&world), "");
}

#[test]
fn below_another_root_that_one_is_covered() {
    let world = World::new();
    let root = world.path("root");
    make_root(&root, "sh cat rm touch");
    sh("cd \"$1\"; echo conf > etc/conf", &[root.to_str().unwrap()]);
    let at = format!("--root={}", root.display());
    world.ok(&[&at, "init", "--system", "--type", "web"]);
    world.ok(&[&at, "snap", "-m", "first", &root.join("etc").display().to_string()]);
    world.ok(&[&at, "ci"]);
    let run = world.gdo(&[
        &at,
        "--quiet",
        "exec",
        "-n",
        "--cwd",
        "/etc",
        "--",
        "sh",
        "-ec",
        "pwd; echo more >> conf; touch made; cat /dev/null; rm passwd",
    ]);
    assert_eq!((run.code, &*run.out), (0, "M /etc/conf\nA /etc/made\nD /etc/passwd\n"), "{}", run.err);
    assert_eq!(sh("cat \"$1/etc/conf\"; ls \"$1/etc\"", &[root.to_str().unwrap()]), "conf\nconf\ngit-devops\ngroup\npasswd\n");
}

#[test]
fn without_the_right_to_mount_there_is_no_preview() {
    let world = origin();
    let said = world.sh("! setpriv --bounding-set -sys_admin gdo exec -n -- touch made 2>&1; test ! -e made");
    assert!(said.contains("no preview here") && said.contains("only root can"), "{said}");
}
