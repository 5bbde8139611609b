//! Corrections on a model whose preferences are known: ln p = content + token + place, scaled to a sum of 1.

use super::*;

/// Every rotation of the options, asked of such a model. Tokens stay with places, or move with `shift`.
fn ask(content: &[f64], token: &[f64], place: &[f64]) -> Vec<Asked> {
    let n = content.len();
    let ask = |shift: usize| {
        let contents: Vec<usize> = (0..n).map(|at| (at + shift) % n).collect();
        let tokens: Vec<usize> = (0..n).collect();
        let logs = (0..n).map(|at| (content[contents[at]] + token[tokens[at]] + place[at]).exp()).collect();
        Asked { content: contents, token: tokens, probability: normalise(logs).unwrap() }
    };
    (0..n).map(ask).collect()
}

fn softmax(logs: &[f64]) -> Vec<f64> {
    normalise(logs.iter().map(|log| log.exp()).collect()).unwrap()
}

fn assert_near(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
    }
}

#[test]
fn an_effect_of_content_survives_any_preference_for_tokens() {
    for token in [[0.0, 0.0, 0.0], [3.0, -1.0, 0.5], [-4.0, 2.0, 2.0]] {
        let asked = ask(&[0.7, 0.2, -0.4], &token, &[0.3, 0.0, -0.9]);
        assert!((content_effect(&asked, 0, 2).unwrap() - 1.1).abs() < 1e-9);
        assert_eq!(content_effect(&asked[..2], 0, 2), Err(Undefined::Unbalanced));
    }
    assert_eq!(content_effect(&[], 0, 1), Err(Undefined::NoRows));
}

#[test]
fn the_prior_of_tokens_is_found_and_taken_out() {
    let token = [1.0, 0.0, -0.5];
    let contents = [[0.5, 0.1, 0.0], [0.0, -1.0, 2.0]];
    let questions: Vec<Vec<Asked>> = contents.iter().map(|content| ask(content, &token, &[0.0; 3])).collect();
    let prior = token_prior(&questions).unwrap();
    // Exact up to scaling each asking to 1, which is the same for all tokens of one asking.
    assert_near(&prior, &softmax(&token));
    for (content, question) in contents.iter().zip(&questions) {
        for asked in question {
            assert_near(&debiased(asked, &prior).unwrap(), &softmax(content));
        }
    }
    assert_eq!(token_prior(&[questions[0][..2].to_vec()]), Err(Undefined::Unbalanced));
    assert_eq!(token_prior(&[]), Err(Undefined::NoRows));
}

#[test]
fn averaging_leaves_no_content_ahead_where_tokens_decide() {
    let asked = ask(&[0.0; 4], &[2.0, 0.0, -1.0, 0.3], &[0.0; 4]);
    assert_near(&averaged(&asked).unwrap(), &[0.25; 4]);
    assert_eq!(averaged(&asked[1..]), Err(Undefined::Unbalanced));
}

#[test]
fn tokens_that_decide_are_seen_in_rates_and_flips() {
    let by_token: Vec<Vec<Asked>> = (0..5).map(|_| ask(&[0.0, 0.1], &[2.0, 0.0], &[0.0; 2])).collect();
    let by_content: Vec<Vec<Asked>> = (0..5).map(|_| ask(&[2.0, 0.0], &[0.1, 0.0], &[0.0; 2])).collect();
    assert_eq!((flip_rate(&by_token), flip_rate(&by_content)), (Ok(1.0), Ok(0.0)));
    let rates = choice_rates(&by_token.concat()).unwrap();
    assert_near(&rates.token, &[1.0, 0.0]);
    assert_near(&rates.place, &[1.0, 0.0]);
    assert_near(&rates.content, &[0.5, 0.5]);
    assert_near(&choice_rates(&by_content.concat()).unwrap().content, &[1.0, 0.0]);
    assert_eq!(token_deviation(&by_token.concat(), &[0; 10]), Ok(0.5));
    assert_eq!(token_deviation(&by_content.concat(), &[0; 10]), Ok(0.0));
    assert_eq!(token_deviation(&by_content[0][..1], &[0]), Err(Undefined::OneGroup));
    assert_eq!(flip_rate(&[by_token[0][..1].to_vec()]), Err(Undefined::NoRows));
    assert_eq!(choice_rates(&[]), Err(Undefined::NoRows));
}

#[test]
fn symbols_that_move_with_contents_are_not_balanced() {
    let mut asked = ask(&[0.4, 0.0], &[0.0; 2], &[0.0; 2]);
    asked[1].token = vec![1, 0];
    // Content 0 always carries token 0 now: what is preferred cannot be told.
    assert!(!balanced(&asked));
}

#[test]
fn a_content_free_answer_is_taken_out() {
    let free = ContentFree::new(&[0.6, 0.2, 0.8, 0.4], 2).unwrap();
    assert_near(free.prior(), &[0.7, 0.3]);
    assert_near(&free.correct(&[0.7, 0.3]).unwrap(), &[0.5, 0.5]);
    assert_near(&free.correct(&[0.5, 0.5]).unwrap(), &[0.3, 0.7]);
    assert_eq!(ContentFree::new(&[1.0, 0.0], 2), Err(Undefined::DivisionByZero));
    assert_eq!(ContentFree::new(&[], 2), Err(Undefined::NoRows));
}

#[test]
fn the_rule_of_separation() {
    // 10 questions in 2 wordings; means 0.1 … 1.0 and, in the second wording, the same and 0.2 more.
    let effects: Vec<f64> = (1..=10).flat_map(|q| [f64::from(q) / 10.0, f64::from(q) / 10.0 + 0.2]).collect();
    let clear = separation(&effects, 2, 0.95).unwrap();
    assert_eq!(clear.verdict, Verdict::Separable);
    assert_near(&clear.by_wording, &[0.55, 0.75]);
    // Student's t of 9 degrees: 2.262157; the deviation of 0.1 … 1.0 is 0.302765.
    let reach = 2.262_157_162_740_992 * 0.302_765_035_409_749_2 / 10.0_f64.sqrt();
    assert_near(&[clear.effect, clear.low, clear.high], &[0.65, 0.65 - reach, 0.65 + reach]);
    let turned: Vec<f64> = effects.iter().map(|e| -e).collect();
    assert_eq!(separation(&turned, 2, 0.95).unwrap().verdict, Verdict::Separable);
    // Clear on average, but of the other sign in one wording.
    let changing: Vec<f64> = (1..=10).flat_map(|q| [1.0 + f64::from(q) / 10.0, -0.1]).collect();
    assert_eq!(separation(&changing, 2, 0.95).unwrap().verdict, Verdict::SignChanges);
    let noisy: Vec<f64> = (0..10).flat_map(|q| [if q % 2 == 0 { 1.0 } else { -0.9 }; 2]).collect();
    assert_eq!(separation(&noisy, 2, 0.95).unwrap().verdict, Verdict::IntervalHoldsZero);
    assert_eq!(separation(&[0.0; 8], 2, 0.95).unwrap().verdict, Verdict::IntervalHoldsZero);
    assert_eq!(separation(&effects, 1, 0.95), Err(Undefined::OneGroup));
    assert_eq!(separation(&effects[..2], 2, 0.95), Err(Undefined::NoRows));
}
