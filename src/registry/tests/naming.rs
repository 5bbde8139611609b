//! Names, generations and aliases: what resolves to what, and who wins a race.

use super::*;

#[test]
fn names_and_references_are_checked() {
    for good in ["a", "0", "llama-3.poet_v2", &"a".repeat(63)] {
        assert!(Name::parse(good).is_some(), "{good}");
    }
    for bad in ["", "-a", ".a", "A", "a/b", "a@b", "..", "ä", "a b", &"a".repeat(64)] {
        assert!(Name::parse(bad).is_none(), "{bad}");
    }
    assert_eq!(reference("a@0123abcd").to_string(), "a@0123abcd");
    for bad in ["a@", "a@0123abc", "a@0123ABCD", "a@0123abcg", "@01234567", &format!("a@{}", "0".repeat(65))] {
        assert!(Reference::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_published_adapter_is_resolved_by_name_and_generation() {
    let house = Plan::default().start();
    let first = house.publish("poet", 100, "one");
    assert!(first.generations[0].resident);
    assert_eq!((first.generations[0].leases, first.generations[0].effect), (0, 0.5));
    let second = house.publish("poet", 100, "two");
    assert_ne!(first.current, second.current);
    assert_eq!(house.lease("poet").generation().to_string(), second.current);
    let old = format!("poet@{}", &first.current[..8]);
    assert_eq!(house.lease(&old).generation().to_string(), first.current);
    let ids: Vec<_> = second.generations.iter().map(|g| g.id.clone()).collect();
    assert_eq!(ids, [second.current.clone(), first.current.clone()]);
    // Back to what was: the same content becomes current again.
    let back = house.publish("poet", 100, "one");
    assert_eq!(back.current, first.current);
    assert_eq!(back.generations.len(), 2);
    assert_eq!(json(&house.registry.get(&name("poet")).unwrap().generations), json(&back.generations));
    assert!(matches!(house.registry.resolve(&reference("nobody")), Err(RegistryError::AdapterNotFound(_))));
    assert!(matches!(house.registry.resolve(&reference("poet@00000000")), Err(RegistryError::AdapterNotFound(_))));
}

#[test]
fn digits_that_fit_two_generations_resolve_to_neither() {
    let house = Plan::default().start();
    let record = house.publish("poet", 1, "one");
    let id = Generation::parse(&record.current).unwrap();
    let twin = Generation::parse(&format!("{}{}", &record.current[..60], "0000")).unwrap();
    assert_ne!(id, twin);
    house
        .registry
        .names
        .put(name("poet"), Some(Entry::Adapter { current: id, pinned: false, generations: vec![id, twin] }));
    let short = format!("poet@{}", &record.current[..60]);
    assert!(matches!(house.registry.resolve(&reference(&short)), Err(RegistryError::AdapterNotFound(_))));
    assert_eq!(house.lease(&format!("poet@{id}")).generation(), id);
}

#[test]
fn what_is_faulty_or_does_nothing_is_refused_and_leaves_nothing() {
    let house = Plan::default().start();
    let broken = AdapterFiles { config: b"nonsense".to_vec(), tensors: vec![] };
    assert!(matches!(house.registry.publish(broken, publish("poet")), Err(RegistryError::Lora(_))));
    let idle = |effect: &str| AdapterFiles { config: format!("10 {effect}").into_bytes(), tensors: vec![] };
    for effect in ["0", "1e-9", "-1"] {
        assert!(matches!(house.registry.publish(idle(effect), publish("poet")), Err(RegistryError::NoEffect)));
    }
    for effect in ["NaN", "inf"] {
        let allowed = Publish { allow_no_effect: true, ..publish("poet") };
        assert!(matches!(house.registry.publish(idle(effect), allowed), Err(RegistryError::Lora(_))));
    }
    assert_eq!((house.blobs(), house.metrics.adapter_bytes.get()), (0, 0));
    assert!(house.registry.list(None, 10).unwrap().is_empty());
    house.registry.publish(idle("0"), Publish { allow_no_effect: true, ..publish("poet") }).unwrap();
    assert_eq!(house.metrics.adapter_loads.with_label_values(&["invalid"]).get(), 6);
}

#[test]
fn one_of_many_racing_publishers_wins() {
    let house = Plan::default().start();
    let expected = house.publish("poet", 1, "first").current;
    let results = at_once(16, |index| {
        let publish = Publish { expected: generation(&expected), ..publish("poet") };
        house.registry.publish(files(1, &index.to_string()), publish)
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 15));
    let current = won.into_iter().next().unwrap().unwrap().current;
    assert!(
        lost.iter().all(|r| matches!(r, Err(RegistryError::GenerationMismatch { actual, .. }) if *actual == current))
    );
    assert_eq!(house.lease("poet").generation().to_string(), current);
    // Two configurations are equal: one file. Three tensor files, of which the losers' left no trace.
    assert_eq!(house.blobs(), 3);
    let taken = Publish { expected: Expected::Absent, ..publish("poet") };
    assert!(matches!(house.registry.publish(files(1, "x"), taken), Err(RegistryError::GenerationMismatch { .. })));
}

#[test]
fn one_of_many_racing_alias_changes_wins() {
    let house = Plan::default().start();
    for index in 0..16 {
        house.publish(&format!("a{index}"), 1, &index.to_string());
    }
    let set = |index: usize, expected| {
        house.registry.set_alias(&name("live"), &reference(&format!("a{index}")), expected, Demand::AsItWas, None)
    };
    let first = at_once(16, |index| set(index, Expected::Absent));
    assert_eq!(first.iter().filter(|r| r.is_ok()).count(), 1);
    let before = house.registry.alias(&name("live")).unwrap().generation;
    let second = at_once(16, |index| set(index, generation(&before)));
    let won = second.iter().filter(|r| r.is_ok()).count();
    // Setting it to what it is already leaves it open for one more.
    assert!((1..=2).contains(&won), "{won}");
    assert_eq!(house.lease("live").generation().to_string(), house.registry.alias(&name("live")).unwrap().generation);
}

#[test]
fn aliases_and_adapters_share_one_name_space() {
    let house = Plan::default().start();
    let record = house.publish("poet", 1, "one");
    let set = |alias: &str, target: &str| {
        house.registry.set_alias(&name(alias), &reference(target), Expected::Any, Demand::AsItWas, None)
    };
    assert!(matches!(set("poet", "poet"), Err(RegistryError::NameTaken(_, "an adapter"))));
    assert!(matches!(set("live", "nobody"), Err(RegistryError::AdapterNotFound(_))));
    set("live", "poet").unwrap();
    set("twin", "live").unwrap();
    let second = house.publish("poet", 1, "two");
    // An alias stays at its generation, whatever becomes current.
    assert_eq!(house.lease("live").generation().to_string(), record.current);
    assert_eq!(house.lease("twin").generation().to_string(), record.current);
    assert!(matches!(
        house.registry.publish(files(1, "x"), publish("live")),
        Err(RegistryError::NameTaken(_, "an alias"))
    ));
    let got = house.registry.get(&name("live")).unwrap();
    assert_eq!(
        (got.name.as_str(), &got.current, got.aliases),
        ("poet", &second.current, vec!["live".into(), "twin".into()])
    );
    let delete = |text: &str, expected| house.registry.delete_alias(&name(text), expected, None);
    assert!(matches!(delete("live", generation(&second.current)), Err(RegistryError::GenerationMismatch { .. })));
    delete("live", generation(&record.current)).unwrap();
    assert!(matches!(delete("live", Expected::Any), Err(RegistryError::AliasNotFound(_))));
    assert!(matches!(house.registry.alias(&name("live")), Err(RegistryError::AliasNotFound(_))));
    assert!(!house.resident("live"));
}

#[test]
fn a_thousand_swaps_never_show_a_name_that_leads_nowhere() {
    let house = Plan::memory(1 << 20).start();
    house.publish("poet", 1, "0");
    house.registry.set_alias(&name("live"), &reference("poet"), Expected::Any, Demand::AsItWas, None).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0_u64;
                    while !done.load(Ordering::SeqCst) {
                        assert!(house.resident("poet"));
                        house.lease("live");
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for swap in 1..=500 {
            let held = house.lease("poet");
            let record = house.publish("poet", 1, &swap.to_string());
            assert_ne!(held.generation().to_string(), record.current);
            house.registry.set_alias(&name("live"), &reference("poet"), Expected::Any, Demand::AsItWas, None).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    let record = house.registry.get(&name("poet")).unwrap();
    // The current one, the one that `live` pointed to at the last publish, and those that are kept.
    assert_eq!(record.generations.len(), 2 + RegistrySettings::default().keep_generations);
    assert_eq!(house.metrics.adapter_bytes.get(), 1, "retired generations are gone");
    assert_eq!(house.metrics.adapter_swap_stall.get_sample_count(), 1002);
    assert_eq!(house.blobs(), 1 + record.generations.len());
}

#[test]
fn pages_are_in_order_and_complete() {
    let house = Plan::default().start();
    for text in ["c", "a", "b-1", "b", "b.1"] {
        house.publish(text, 1, text);
        house
            .registry
            .set_alias(&name(&format!("x{text}")), &reference(text), Expected::Any, Demand::AsItWas, None)
            .unwrap();
    }
    let mut names = vec![];
    while let Some(next) = house.registry.list(names.last().map(String::as_str), 2).unwrap().first().cloned() {
        names.push(next.name);
    }
    assert_eq!(names, ["a", "b", "b-1", "b.1", "c"]);
    assert_eq!(house.registry.list(Some("b"), 2).unwrap().len(), 2);
    assert_eq!(house.registry.list(None, 0).unwrap().len(), 0);
    let aliases = house.registry.aliases(Some("xb"), 10).unwrap();
    assert_eq!(aliases.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["xb-1", "xb.1", "xc"]);
}
