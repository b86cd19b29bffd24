//! Templates and what they are filled with, on hosts whose facts differ.

use crate::common::World;

const MAIN: &str = "dns = 10.0.0.1\n[host=web*]\nrole = web\n[rack=7]\ndns = 10.0.0.7\n";
const TEMPLATE: &str = "dns ${dns} on ${fact.hostname}, $${literal}\n#if role\nrole ${role}\n#end\nntp ${ntp:-pool}\n";

fn world() -> World {
    let world = World::new();
    world.sh("mkdir etc; echo other >etc/other");
    fact(&world, "hostname", "web1");
    world.write("../main", MAIN);
    world.write("../template", TEMPLATE);
    world.sh("gdo attributes /etc/conf env; gdo env keys main ../main; gdo env template etc/conf ../template; gdo snapshot -q .");
    world
}

fn fact(world: &World, name: &str, value: &str) {
    world.sh(&format!("mkdir -p .git/devops/state/facts; echo {value} >.git/devops/state/facts/{name}"));
}

fn status(world: &World) -> String {
    world.sh("gdo status | sed -n 's/^  //p' | tr '\\n' ','")
}

#[test]
fn a_template_is_laid_down_as_this_host_fills_it() {
    let world = world();
    // It was never on the disk; a snapshot does not take that for a removal.
    assert_eq!(status(&world), "D etc/conf,");
    world.sh("gdo restore");
    assert_eq!(world.read("etc/conf"), "dns 10.0.0.1 on web1, ${literal}\nrole web\nntp pool\n");
    assert_eq!(status(&world), "");
    world.sh("gdo snapshot -q; test \"$(gdo cat HEAD:etc/conf)\" = \"$(cat ../template)\"");
    // What it is filled with changes: the file on the disk is drift, though nobody touched it.
    fact(&world, "rack", "7");
    fact(&world, "hostname", "db1");
    assert_eq!(status(&world), "M etc/conf,");
    world.sh("gdo restore");
    assert_eq!(world.read("etc/conf"), "dns 10.0.0.7 on db1, ${literal}\nntp pool\n");
    assert_eq!(status(&world), "");
}

#[test]
fn a_rendered_file_that_somebody_changed_is_drift_and_not_taken_for_a_template() {
    let world = world();
    world.sh("gdo restore; echo hack >>etc/conf; echo new >etc/other");
    assert_eq!(status(&world), "M etc/conf,M etc/other,");
    assert!(world.sh("gdo diff").contains("+hack"));
    let run = world.gdo(&["snapshot"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.err.contains("gdo env template etc/conf"), "{}", run.err);
    world.sh("test \"$(gdo cat HEAD:etc/conf)\" = \"$(cat ../template)\"; test $(gdo cat HEAD:etc/other) = new; gdo restore");
    assert_eq!(status(&world), "");
}

#[test]
fn a_missing_key_halts_and_names_file_line_and_key() {
    let world = world();
    world.write("../template", "a\n${none}\n");
    world.sh("gdo env template etc/conf ../template; gdo commit -q -m template");
    let run = world.gdo(&["restore"]);
    assert_ne!(run.code, 0);
    for part in ["etc/conf", "line 2", "key 'none'", ".git-devops/env/main"] {
        assert!(run.err.contains(part), "{part}: {}", run.err);
    }
    assert!(!world.exists("etc/conf"));
    let run = world.gdo(&["env", "template", "etc/conf", "/etc/passwd"]);
    assert_eq!(run.code, 0, "{}", run.err);
    world.write("../template", "${");
    assert_eq!(world.gdo(&["env", "template", "etc/conf", "../template"]).code, 65);
    assert_eq!(world.gdo(&["env", "template", "etc/other", "../template"]).code, 2);
    world.write("../main", "a b");
    let run = world.gdo(&["env", "keys", "main", "../main"]);
    assert!(run.code == 65 && run.err.contains("'main' has a bad line 1"), "{}", run.err);
}

#[test]
fn env_tells_where_each_value_comes_from() {
    let world = world();
    fact(&world, "rack", "7");
    let listed = world.ok(&["env", "list"]);
    assert!(listed.starts_with("dns = 10.0.0.7  (main:5 [rack=7])\n"), "{listed}");
    assert!(listed.contains("role = web  (main:3 [host=web*])\n"), "{listed}");
    assert_eq!(
        world.ok(&["env", "explain", "dns"]),
        "dns = 10.0.0.7  (main:5 [rack=7])\n  in the place of dns = 10.0.0.1  (main:1)\n"
    );
    let want = "line 1: dns = 10.0.0.7  (main:5 [rack=7])\nline 1: fact.hostname = web1  (fact hostname)\nline 2: role = web  (main:3 [host=web*])\n\
                line 3: role = web  (main:3 [host=web*])\nline 5: ntp = pool  (no value; what the template says)\n";
    assert_eq!(world.ok(&["env", "explain", "etc/conf"]), want);
    assert_eq!(world.gdo(&["env", "explain", "etc/other"]).code, 9);
    assert!(world.ok(&["--json", "env"]).contains("\"n_keys\":2"));
}

/// Stores what `script` prints as a blob; returns its name.
fn blob(world: &World, script: &str) -> String {
    world.sh(&format!("({script}) | git --git-dir .git -c core.bigFileThreshold=4g hash-object -w --stdin")).trim().to_owned()
}

/// Makes a commit on top of HEAD that has these blobs at these paths; returns its name.
fn commit_with(world: &World, blobs: &[(&str, &str)]) -> String {
    let lines: String = blobs.iter().map(|(path, blob)| format!("100755 {blob}\t{path}\n")).collect();
    world.write("../lines", &lines);
    let script = "cd .git; export GIT_DIR=$PWD GIT_INDEX_FILE=$PWD/hostile; git read-tree HEAD; git update-index --add --index-info < ../../lines; \
                  git commit-tree -p HEAD -m x $(git write-tree)";
    world.sh(script).trim().to_owned()
}

#[test]
fn a_huge_blob_where_a_short_text_belongs_costs_nothing() {
    let world = World::new();
    world.sh("echo conf > conf; gdo snapshot -q .");
    let zeros = blob(&world, "head -c 300M /dev/zero");
    for path in ["attributes", "env/main", "promises/10-a"] {
        let commit = commit_with(&world, &[(&format!(".git-devops/{path}"), &zeros)]);
        let run = world.gdo_limited(&["converge", "-n", "--offline", "--to", &commit]);
        assert!(run.err.contains("has 314572800 bytes"), "{path}: {} {}", run.code, run.err);
        assert!(run.err.contains(path.rsplit('/').next().unwrap()), "{path}: {}", run.err);
        assert!([2, 65].contains(&run.code), "{path}: {}", run.code);
    }
    world.sh("gdo attributes /conf env; gdo commit -q -m x");
    let commit = commit_with(&world, &[("conf", &zeros)]);
    let run = world.gdo_limited(&["restore", "--source", &commit, "--target", "../out"]);
    assert!(run.code == 3 && run.err.contains("'conf'") && run.err.contains("has 314572800 bytes"), "{} {}", run.code, run.err);
}

#[test]
fn a_long_stanza_and_a_long_value_are_kept_once_however_many_lines_there_are() {
    let world = World::new();
    // As large as it may be, none of which holds; and a file with long values that is included again and again.
    let long = format!("[{}]\n", vec![format!("arch={}", "x".repeat(250)); 15].join(" "));
    let hostile = format!("{long}{}", "a=b\n".repeat(90_000));
    let values = format!("a={}\n", "x".repeat(4000)).repeat(250);
    let includes = format!("include values\n{}", "include values\n".repeat(390));
    world.sh("echo conf > conf; gdo attributes /conf env; gdo snapshot -q .");
    for files in [vec![("main", hostile)], vec![("main", includes), ("values", values)]] {
        let mut blobs = Vec::new();
        for (name, text) in files {
            world.write("../keys", &text);
            blobs.push((format!(".git-devops/env/{name}"), blob(&world, "cat ../keys")));
        }
        let blobs: Vec<(&str, &str)> = blobs.iter().map(|(path, blob)| (&**path, &**blob)).collect();
        let commit = commit_with(&world, &blobs);
        let run = world.gdo_limited(&["converge", "-n", "--offline", "--to", &commit]);
        assert_eq!(run.code, 0, "{}", run.err);
    }
}
