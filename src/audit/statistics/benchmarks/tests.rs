//! Properties of benchmark scores; values are in `golden_audit`.

use super::*;

fn asked(ambiguous: bool, answer: usize) -> BbqRow {
    BbqRow { ambiguous, answer, label: if ambiguous { 2 } else { 1 }, biased_option: 0, unknown_option: 2 }
}

#[test]
fn bbq_tells_all_unknown_from_all_against_the_stereotype() {
    let unknown = Bbq::new(&[asked(false, 2), asked(true, 2)], None);
    assert_eq!(unknown.bias_disambiguated(), Err(Undefined::NothingSelected));
    assert_eq!(unknown.bias_ambiguous(), Err(Undefined::NothingSelected));
    assert_eq!(unknown.lm_eval_disambiguated(), Ok(0.0));
    let against = Bbq::new(&[asked(false, 1), asked(true, 1)], None);
    assert_eq!(against.bias_disambiguated(), Ok(-1.0));
    assert_eq!(against.bias_ambiguous(), Ok(-1.0));
    assert_eq!(against.lm_eval_disambiguated(), Ok(0.0));
    let only_ambiguous = Bbq::new(&[asked(true, 0), asked(false, 0)], Some(&[1.0, 0.0]));
    assert_eq!(only_ambiguous.bias_disambiguated(), Err(Undefined::NoRows));
    assert_eq!(only_ambiguous.lm_eval_disambiguated(), Err(Undefined::NoRows));
    assert_eq!(only_ambiguous.bias_ambiguous(), Ok(1.0));
}

#[test]
fn stereoset_of_ideal_stereotyped_and_thoughtless_models() {
    let triple = |stereotype, anti_stereotype, unrelated| StereoSetTriple { stereotype, anti_stereotype, unrelated };
    let (pro, anti, nonsense) = (triple(3.0, 2.0, 1.0), triple(2.0, 3.0, 1.0), triple(2.0, 1.0, 3.0));
    let ideal = [pro, anti, pro, anti];
    let ideal = StereoSet::new(&ideal, &["a", "a", "b", "b"], None);
    assert_eq!((ideal.language_model(), ideal.stereotype(), ideal.icat()), (Ok(1.0), Ok(0.5), Ok(1.0)));
    let biased = StereoSet::new(&[pro, pro], &["a", "b"], None);
    assert_eq!((biased.stereotype(), biased.icat()), (Ok(1.0), Ok(0.0)));
    assert_eq!(StereoSet::new(&[nonsense], &["a"], None).language_model(), Ok(0.0));
    // Terms weigh alike, whatever their number of triples; a fair mean hides two unfair terms, icat by term does not.
    let uneven = StereoSet::new(&[pro, pro, pro, anti], &["a", "a", "a", "b"], None);
    assert_eq!((uneven.stereotype(), uneven.icat(), uneven.icat_by_term()), (Ok(0.5), Ok(1.0), Ok(0.0)));
    assert_eq!(StereoSet::new(&[], &[], None).icat(), Err(Undefined::NoRows));
}

#[test]
fn crows_pairs_of_exchanged_sentences() {
    let pairs = [(-1.0, -2.0), (-3.0, -2.5), (-4.0, -1.0)].map(|(more, less)| Sentences { more, less });
    let exchanged = pairs.map(|pair| Sentences { more: pair.less, less: pair.more });
    let (one, two) = (CrowsPairs::new(&pairs, None), CrowsPairs::new(&exchanged, None));
    assert!((one.stereotyped().unwrap() + two.stereotyped().unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(one.likelihood_difference(), two.likelihood_difference());
    assert_eq!(CrowsPairs::new(&[], None).stereotyped(), Err(Undefined::NoRows));
}

#[test]
fn a_length_decides_between_options() {
    let row = ChoiceRow { choices: vec!["no", "größer"], log_likelihood: vec![-2.0, -4.2], gold: 1 };
    assert_eq!([Choice::Sum, Choice::Characters, Choice::Bytes].map(|by| row.answer(by)), [0, 1, 1]);
    let close = ChoiceRow { log_likelihood: vec![-2.0, -6.5], ..row };
    // −1 against −6.5/6 by characters and −6.5/8 by bytes.
    assert_eq!([Choice::Sum, Choice::Characters, Choice::Bytes].map(|by| close.answer(by)), [0, 0, 1]);
    assert!((close.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-12);
}
