//! Memory: leases, the byte budget, eviction, pruning and deletion.

use super::*;

#[test]
fn a_retired_generation_counts_until_its_last_lease_ends() {
    let house = Plan::memory(250).start();
    house.publish("poet", 100, "one");
    let running = house.lease("poet");
    let clone = running.clone();
    house.publish("poet", 100, "two");
    assert_eq!(house.metrics.adapter_bytes.get(), 200);
    let old = house.registry.get(&name("poet")).unwrap().generations[1].clone();
    assert_eq!((old.resident, old.leases), (false, 2));
    // The idle current generation could leave, the leased one cannot.
    let refused = house.registry.publish(files(200, "x"), publish("other"));
    let Err(RegistryError::Budget { needed: 200, budget: 250, busy: 100 }) = refused else { panic!("{refused:?}") };
    assert!(house.resident("poet"), "nothing is evicted for what cannot fit");
    // A running generation is not read a second time.
    let loads = house.loads();
    house.lease(&format!("poet@{}", running.generation()));
    assert_eq!(house.loads(), loads);
    drop(running);
    assert_eq!(house.metrics.adapter_bytes.get(), 200);
    drop(clone);
    house.registry.publish(files(200, "x"), publish("other")).unwrap();
    assert_eq!(house.metrics.adapter_bytes.get(), 200);
}

#[test]
fn the_least_recently_used_leaves_and_comes_back() {
    let house = Plan::memory(300).start();
    for adapter in ["a", "b", "c"] {
        house.publish(adapter, 100, adapter);
    }
    assert!(house.resident("a"));
    house.publish("d", 100, "d");
    assert!(!house.resident("b"));
    assert!(["a", "c", "d"].iter().all(|name| house.resident(name)));
    assert_eq!(house.metrics.adapter_evictions.get(), 1);
    assert_eq!(house.metrics.adapter_resident.with_label_values(&["b"]).get(), 0);
    let lease = house.lease("b");
    assert_eq!(lease.info().bytes, 100);
    assert!(!house.resident("a"));
    assert_eq!((house.metrics.adapter_bytes.get(), house.metrics.adapters_resident.get()), (300, 3));
    assert_eq!(house.metrics.adapters_registered.get(), 4);
}

#[test]
fn a_label_that_becomes_free_is_anothers() {
    let house = Plan::memory(1 << 20).start();
    for index in 0..=ADAPTER_LABELS {
        house.publish(&format!("a{index}"), 1, &index.to_string());
    }
    let before = house.metrics.labelled_adapters();
    let gone = before.first().unwrap();
    house.registry.delete(&name(gone), Expected::Any, None).unwrap();
    let after = house.metrics.labelled_adapters();
    assert_eq!((before.len(), after.len()), (ADAPTER_LABELS, ADAPTER_LABELS));
    assert!(!after.contains(gone));
    let resident = |name: &String| house.metrics.adapter_resident.with_label_values(&[name.as_str()]).get();
    assert!(after.iter().all(|name| resident(name) == 1));
    assert_eq!(house.metrics.adapters_registered.get(), 100);
}

#[test]
fn pinned_and_leased_adapters_stay() {
    let house = Plan::memory(300).start();
    let pinned = Publish { pinned: Some(true), ..publish("pinned") };
    house.registry.publish(files(100, "p"), pinned).unwrap();
    house.publish("leased", 100, "l");
    house.publish("idle", 100, "i");
    let lease = house.lease("leased");
    house.publish("new", 100, "n");
    assert!(house.resident("pinned") && house.resident("leased") && !house.resident("idle"));
    let refused = house.registry.publish(files(101, "x"), publish("x"));
    assert!(matches!(refused, Err(RegistryError::Budget { needed: 101, budget: 300, busy: 200 })), "{refused:?}");
    assert!(matches!(house.registry.unload(&reference("pinned"), None), Err(RegistryError::Pinned(_))));
    house.registry.load(&reference("pinned"), Some(false), None).unwrap();
    assert!(!house.registry.unload(&reference("pinned"), None).unwrap().generations[0].resident);
    assert!(!house.resident("pinned"));
    // Unloaded while it runs: out of the table, its bytes count.
    let record = house.registry.unload(&reference("leased"), None).unwrap();
    assert_eq!((record.generations[0].resident, record.generations[0].leases), (false, 1));
    assert_eq!(house.metrics.adapter_bytes.get(), 200);
    drop(lease);
    assert_eq!(house.metrics.adapter_bytes.get(), 100);
    assert!(!house.resident("leased"));
    let record = house.registry.load(&reference("leased"), None, None).unwrap();
    assert_eq!((record.generations[0].resident, record.generations[0].leases), (true, 0));
}

#[test]
fn parallel_requests_for_a_stored_adapter_read_it_once() {
    let house = Plan::default().start();
    house.publish("poet", 100, "one");
    house.registry.unload(&reference("poet"), None).unwrap();
    let loads = house.loads();
    let leases = at_once(50, |_| house.lease("poet"));
    assert_eq!(house.loads() - loads, 1);
    assert!(leases.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    assert_eq!(house.registry.get(&name("poet")).unwrap().generations[0].leases, 50);
    assert!(house.registry.loading.is_empty());
}

#[test]
fn deleting_leaves_no_trace_but_running_leases() {
    let house = Plan::default().start();
    let record = house.publish("poet", 10, "one");
    house.publish("twin", 10, "one");
    house.registry.set_alias(&name("live"), &reference("poet"), Expected::Any, Demand::AsItWas, None).unwrap();
    let refused = house.registry.delete(&name("poet"), Expected::Any, None);
    assert!(matches!(refused, Err(RegistryError::InUse { aliases, .. }) if aliases == ["live"]));
    house.registry.delete_alias(&name("live"), Expected::Any, None).unwrap();
    let refused = house.registry.delete(&name("poet"), Expected::Absent, None);
    assert!(matches!(refused, Err(RegistryError::GenerationMismatch { .. })));
    house.registry.delete(&name("poet"), generation(&record.current), None).unwrap();
    assert!(!house.metrics.text().map(|t| String::from_utf8(t).unwrap().contains("\"poet\"")).unwrap());
    // The twin has the same content: files and weights stay.
    assert!(house.resident("twin") && !house.resident("poet"));
    assert_eq!(house.registry.files(&reference("twin")).unwrap().2.len(), 2);
    let running = house.lease("twin");
    house.registry.delete(&name("twin"), Expected::Any, None).unwrap();
    assert_eq!((house.blobs(), house.metrics.adapter_bytes.get()), (0, 10));
    assert_eq!(running.info().rank, 2);
    drop(running);
    assert_eq!((house.metrics.adapter_bytes.get(), house.metrics.adapters_registered.get()), (0, 0));
    assert!(matches!(
        house.registry.delete(&name("twin"), Expected::Any, None),
        Err(RegistryError::AdapterNotFound(_))
    ));
}

#[test]
fn old_generations_are_pruned_unless_aliased_or_leased() {
    let mut plan = Plan::default();
    plan.settings.keep_generations = 1;
    let house = plan.start();
    let aliased = house.publish("poet", 10, "aliased").current;
    house.registry.set_alias(&name("live"), &reference("poet"), Expected::Any, Demand::AsItWas, None).unwrap();
    let leased = house.publish("poet", 10, "leased").current;
    let lease = house.lease("poet");
    let ids = |record: &AdapterRecord| record.generations.iter().map(|g| g.id.clone()).collect::<Vec<_>>();
    let kept = house.publish("poet", 10, "kept").current;
    let last = house.publish("poet", 10, "last");
    assert_eq!(ids(&last), [last.current.clone(), kept.clone(), leased, aliased.clone()]);
    drop(lease);
    let newest = house.publish("poet", 10, "newest");
    assert_eq!(ids(&newest), [newest.current.clone(), last.current.clone(), aliased]);
    assert_eq!(house.blobs(), 1 + 3);
    assert!(house.registry.resolve(&reference(&format!("poet@{kept}"))).is_err());
}

#[test]
fn deletion_during_a_load_leaves_nothing_in_memory() {
    let house = Plan::default().start();
    house.publish("poet", 100, "one");
    house.registry.unload(&reference("poet"), None).unwrap();
    let pause = Arc::new(Barrier::new(2));
    *house.model.pause.lock().unwrap() = Some(pause.clone());
    thread::scope(|scope| {
        let load = scope.spawn(|| house.lease("poet"));
        pause.wait();
        house.registry.delete(&name("poet"), Expected::Any, None).unwrap();
        pause.wait();
        // Asked for while it was there: answered.
        assert_eq!(load.join().unwrap().info().bytes, 100);
    });
    assert_eq!(house.metrics.adapter_bytes.get(), 0);
}

#[test]
fn what_an_adapter_takes_counts_and_not_what_its_row_says() {
    let mut house = Plan::memory(250).start();
    house.publish("poet", 100, "one");
    for said in [240, 60] {
        let folder = house.folder.clone();
        drop(house);
        let store = Store::open(&folder.path().join("data")).unwrap();
        let say = |catalog: &crate::store::Catalog<'_>| {
            let row = catalog.generations("poet")?.remove(0);
            catalog.put_generation(&crate::store::GenerationRow { bytes: said, ..row })
        };
        store.change(say).unwrap();
        drop(store);
        house = Plan::memory(250).open(folder);
        house.lease("poet");
        assert_eq!(house.metrics.adapter_bytes.get(), 100);
    }
    house.publish("other", 250, "two");
    assert_eq!(house.metrics.adapter_bytes.get(), 250);
}
