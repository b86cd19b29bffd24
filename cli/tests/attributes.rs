//! What the attributes of a path make `snapshot`, `status` and `restore` do, and leave.

use crate::common::World;

fn changes(world: &World) -> String {
    world.sh("gdo status | sed -n 's/^  //p' | tr '\\n' ','")
}

#[test]
fn words_are_quoted_where_they_must_be() {
    let world = World::new();
    world.sh("gdo attributes 'My Files/' local");
    world.sh("gdo attributes /etc/sshd 'validate=sshd -t -f \"%s\"' handler=ssh-reload,log");
    world.sh("gdo attributes /etc/sshd/moduli -validate");
    let said = world.ok(&["attributes"]);
    let want =
        "\"My Files/\" local\n/etc/sshd validate=\"sshd -t -f \\\"%s\\\"\" handler=ssh-reload,log\n/etc/sshd/moduli -validate\n";
    assert_eq!(said, want);
    world.sh("gdo attributes 'My Files/'");
    assert_eq!(world.ok(&["attributes"]).lines().count(), 2);
    let run = world.gdo(&["attributes", "x", "handler=Bad"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("'Bad' is not the name of a handler"), "{}", run.err);
}

#[test]
fn a_touched_file_whose_time_is_not_kept_is_no_change() {
    let world = World::new();
    world.sh("mkdir d; echo 1 >d/f; echo 2 >kept; mkfifo d/node; touch -d 2020-01-01 d/f kept d/node");
    world.sh("gdo snapshot -q .");
    world.sh("gdo attributes /d/ times=no");
    // The times that are recorded go with the next snapshot, and then no more.
    assert_eq!(changes(&world), "A .git-devops/attributes,m d,m d/f,m d/node,");
    world.sh("gdo snapshot -q .");
    world.sh("touch d d/f d/node");
    assert_eq!(changes(&world), "");
    assert_eq!(world.sh("gdo snapshot >&2; gdo restore -n"), "would change 0 of 5 files and directories\n");
    world.sh("touch -d 2021-01-01 kept");
    assert_eq!(changes(&world), "m kept,");
    world.sh("echo changed >d/f");
    assert_eq!(changes(&world), "M d/f,m kept,");
    world.sh("gdo attributes /d/; gdo snapshot -q; touch -d 2022-01-01 d/f");
    assert_eq!(changes(&world), "m d/f,");
}

#[test]
fn a_file_stored_before_its_times_ceased_to_be_kept_is_restored_without() {
    let world = World::new();
    world.sh("echo 1 >f; touch -d 2020-01-01 f");
    world.sh("gdo snapshot -q .");
    world.sh("gdo attributes f times=no; touch f");
    assert_eq!(world.sh("gdo restore -n f"), "would change 0 of 2 files and directories\n");
}

#[test]
fn what_is_local_is_not_stored_not_restored_not_removed() {
    let world = World::new();
    world.sh("mkdir -p d/cache; echo 1 >d/f; echo here >d/cache/x; echo id >d/id; mkfifo d/fifo; gdo attributes d/cache/ local; gdo attributes d/id local");
    world.sh("gdo snapshot -q .");
    assert_eq!(world.stored(), ["d/f"]);
    // What was stored before stays stored as it was, whatever becomes of it on the host.
    world.sh(
        "gdo attributes d/f local; gdo attributes d/fifo local; gdo commit -m a; echo 2 >d/f; chmod 600 d/f; rm d/fifo; touch d",
    );
    assert_eq!(changes(&world), "m d,");
    world.sh("gdo snapshot -q .");
    assert_eq!((world.stored(), changes(&world)), (vec!["d/f".to_owned()], String::new()));
    world.sh("rm d/f; gdo snapshot -q; test -z \"$(gdo ls HEAD d | grep -v -e f -e fifo)\"");
    assert_eq!(world.stored(), ["d/f"]);
    world.sh("gdo restore d; gdo restore");
    assert!(!world.exists("d/f") && !world.exists("d/fifo") && world.exists("d/cache/x"));
    // Not even a commit without it takes it away.
    world.sh("gdo rm --cached d/f; gdo commit -m gone; echo mine >d/f; gdo restore --source HEAD~1; gdo restore; test \"$(cat d/f)\" = mine");
    let run = world.gdo(&["add", "d/cache/x"]);
    assert_eq!(run.code, 65, "{}", run.err);
}

#[test]
fn a_seed_is_laid_down_where_nothing_is_and_then_the_hosts() {
    let world = World::new();
    world.sh("echo default >conf; echo 1 >other; gdo attributes conf seed");
    world.sh("gdo snapshot -q .");
    world.sh("echo the hosts own >conf; chmod 600 conf");
    assert_eq!(changes(&world), "");
    world.sh("gdo restore; test \"$(cat conf)\" = 'the hosts own'");
    world.sh("echo 2 >other; gdo snapshot -q; test \"$(gdo cat HEAD:conf)\" = default");
    // Nothing there: laid down.
    world.sh("rm conf; gdo restore; test \"$(cat conf)\" = default");
    // Named, it is taken, and put back.
    world.sh("echo better >conf; gdo snapshot -q conf; test \"$(gdo cat HEAD:conf)\" = better");
    world.sh("echo mine >conf; gdo restore conf; test \"$(cat conf)\" = better");
    // A commit without it leaves the host its file.
    world.sh("gdo rm --cached conf; gdo commit -m gone; gdo restore --source HEAD~1; gdo restore; test -e conf");
}

#[test]
fn a_handler_has_a_name_that_an_attribute_can_say() {
    let world = World::new();
    world.write("conf", "x\n");
    world.snapshot();
    for name in ["Reload", "a.b", "a_b", "-a", &"a".repeat(65)] {
        let run = world.gdo(&["handler", name, "--", "true"]);
        assert_eq!(run.code, 2, "{name}: {}{}", run.out, run.err);
        assert_eq!(world.gdo(&["attributes", "conf", &format!("handler={name}")]).code, 2, "{name}");
    }
    assert!(world.gdo(&["handler", "Reload", "--", "true"]).err.contains("'Reload' is not the name of a handler"));
    for name in ["reload", "0-a", &"a".repeat(64)] {
        world.ok(&["handler", name, "--", "true"]);
        world.ok(&["attributes", "conf", &format!("handler={name}")]);
    }
}
