//! What outlives a repeat, a restart, damage and a full disk.

use super::*;

#[test]
fn a_repeated_request_has_one_effect_and_one_answer() {
    let house = Plan::default().start();
    let once = |content| Publish { request: key("UploadAdapter", "id", content), ..publish("poet") };
    let answers = at_once(50, |_| json(&house.registry.publish(files(1, "one"), once(1)).unwrap()));
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(house.loads(), 1);
    house.publish("poet", 1, "two");
    assert_eq!(json(&house.registry.publish(files(1, "one"), once(1)).unwrap()), answers[0]);
    assert_eq!(house.registry.get(&name("poet")).unwrap().generations.len(), 2);
    assert!(matches!(house.registry.publish(files(1, "x"), once(2)), Err(RegistryError::RequestIdReused(_))));
    let aliases = at_once(50, |_| {
        let key = key("SetAlias", "id", 1);
        json(
            &house
                .registry
                .set_alias(&name("live"), &reference("poet"), Expected::Absent, Demand::AsItWas, key)
                .unwrap(),
        )
    });
    assert!(aliases.iter().all(|answer| *answer == aliases[0]));

    let house = house.reopen(Plan::default());
    assert_eq!(json(&house.registry.publish(files(1, "one"), once(1)).unwrap()), answers[0]);
    assert!(matches!(house.registry.publish(files(1, "x"), once(2)), Err(RegistryError::RequestIdReused(_))));
    for _ in 0..2 {
        house.registry.delete_alias(&name("live"), Expected::Any, key("DeleteAlias", "id", 1)).unwrap();
        house.registry.delete(&name("poet"), Expected::Any, key("DeleteAdapter", "id", 1)).unwrap();
        house.registry.unload(&reference("poet"), key("UnloadAdapter", "id", 1)).unwrap_err();
    }
    // A refused request is not remembered.
    house.publish("poet", 1, "one");
    house.registry.unload(&reference("poet"), key("UnloadAdapter", "id", 1)).unwrap();
}

#[test]
fn reopening_forgets_nothing() {
    let house = Plan::default().start();
    house.publish("a", 10, "one");
    house.publish("a", 10, "two");
    house.registry.publish(files(10, "b"), Publish { pinned: Some(true), ..publish("b") }).unwrap();
    house.registry.set_alias(&name("live"), &reference("a"), Expected::Any, Demand::AsItWas, None).unwrap();
    house.publish("a", 10, "three");
    let facts = house.facts();
    let house = house.reopen(Plan::default());
    assert_eq!(house.facts(), facts);
    assert!(house.resident("b"), "pinned ones are loaded");
    assert_eq!(house.loads(), 1);
    assert!(!house.resident("a") && !house.resident("live"));
    assert_ne!(house.lease("a").generation(), house.lease("live").generation());
    assert_eq!(house.facts(), facts);
}

#[test]
fn adapters_of_another_base_are_listed_and_not_resolved() {
    let house = Plan::default().start();
    house.registry.publish(files(10, "b"), Publish { pinned: Some(true), ..publish("b") }).unwrap();
    let house = house.reopen(Plan { base: "other", ..Default::default() });
    assert_eq!(house.registry.list(None, 10).unwrap()[0].base_fingerprint, "base");
    let refused = house.registry.resolve(&reference("b"));
    assert!(matches!(refused, Err(RegistryError::Lora(LoraError::Mismatch(_)))), "{refused:?}");
    assert_eq!(house.metrics.adapter_bytes.get(), 0);
}

#[test]
fn a_damaged_file_is_reported_and_publishing_heals_it() {
    let house = Plan::default().start();
    house.publish("poet", 10, "one");
    let (_, _, stored) = house.registry.files(&reference("poet")).unwrap();
    assert_eq!(
        stored.iter().map(|f| (f.name, f.size)).collect::<Vec<_>>(),
        [("adapter_config.json", 6), ("adapter_model.safetensors", 3)]
    );
    assert_eq!(std::fs::read(&stored[1].path).unwrap(), b"one");
    std::fs::write(&stored[1].path, b"One").unwrap();
    house.registry.unload(&reference("poet"), None).unwrap();
    let corrupt = |result| matches!(result, Err(RegistryError::Store(StoreError::Corrupt(_))));
    assert!(corrupt(house.registry.resolve(&reference("poet")).map(|_| ())));
    assert!(corrupt(house.registry.files(&reference("poet")).map(|_| ())));
    assert_eq!(house.metrics.adapter_bytes.get(), 0);
    assert_eq!(house.metrics.adapter_loads.with_label_values(&["error"]).get(), 1);
    house.publish("poet", 10, "one");
    house.registry.unload(&reference("poet"), None).unwrap();
    house.lease("poet");
}

#[test]
fn a_folder_is_published_and_remembered() {
    let house = Plan::default().start();
    let refused = house.registry.publish_directory("poet", publish("poet"));
    assert!(matches!(refused, Err(RegistryError::NoAdapterDir)));
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("Poet_v2");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), "10 0.5").unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), "tensors").unwrap();
    let mut plan = Plan::default();
    plan.settings.adapter_dir = Some(root.path().to_owned());
    let house = house.reopen(plan);
    let once = || Publish { request: key("LoadAdapter", "id", 1), ..publish("poet") };
    let record = house.registry.publish_directory("Poet_v2", once()).unwrap();
    // Read, not mapped: the folder may go.
    std::fs::remove_dir_all(&folder).unwrap();
    house.registry.unload(&reference("poet"), None).unwrap();
    assert_eq!(house.lease("poet").generation().to_string(), record.current);
    assert_eq!(json(&house.registry.publish_directory("Poet_v2", once()).unwrap()), json(&record));
    assert!(matches!(house.registry.publish_directory("Poet_v2", publish("poet")), Err(RegistryError::Directory(_))));
}

/// Runs [`on_a_small_disk`] again in a mount name space of its own, where the temporary folder is a small disk.
#[test]
#[expect(clippy::print_stderr, reason = "a test that could not run says so")]
fn a_full_disk_is_reported_and_loses_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-rm", "sh", "-ec", script]).arg(disk.path()).arg(std::env::current_exe().unwrap());
        command.env("TMPDIR", disk.path()).output()
    };
    let mount = "mount -t tmpfs -o size=8m tmpfs \"$0\"";
    if !run(mount).is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this system lets nobody mount a file system here");
        return;
    }
    let output =
        run(&format!("{mount}; exec \"$1\" --ignored --exact registry::tests::durable::on_a_small_disk")).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "fills its disk; run by a_full_disk_is_reported_and_loses_nothing"]
fn on_a_small_disk() {
    let house = Plan::default().start();
    let tensors = |index: usize| format!("{index:03}").repeat(240_000);
    let full = (0..1000).find_map(|index| {
        let result = house.registry.publish(files(1, &tensors(index)), publish(&format!("a{index}")));
        result.err().map(|error| (index, error))
    });
    let (index, error) = full.expect("a disk of 8 MiB takes no 1,000 adapters");
    assert!(matches!(error, RegistryError::Store(StoreError::Full)), "{error:?}");
    assert!(index > 0);
    let facts = house.facts();
    assert_eq!(house.blobs(), 1 + index, "what did not fit left nothing");
    let house = house.reopen(Plan::default());
    assert_eq!(house.facts(), facts);
    for index in 0..index {
        house.lease(&format!("a{index}"));
    }
    // The rows of a change need some 50 kB; what the last file could not have is more.
    house.registry.delete(&name("a0"), Expected::Any, None).unwrap();
    house.publish("small", 1, "small");
}
