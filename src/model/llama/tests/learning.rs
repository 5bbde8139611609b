//! A block's own backward against that of candle's graph.

use std::collections::BTreeMap;

use candle_core::Var;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::lora::{Change, LinearDelta};
use crate::ops::seed;

fn values(shape: &[usize], from: u64) -> Var {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(from);
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5)).collect();
    Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
}

/// Low ranks on all layers of the first block, whole weights and norms on the second.
fn changes(model: &Llama) -> (BTreeMap<SiteId, Change>, Vec<Var>) {
    let (mut changes, mut vars) = (BTreeMap::new(), Vec::new());
    for (id, site) in model.sites().iter().enumerate() {
        let from = 10 * id as u64;
        let change = if site.path.contains("layers.1.") {
            let shape = if site.kind == SiteKind::Norm { vec![site.output] } else { vec![site.output, site.input] };
            vars.push(values(&shape, from));
            Change::Replaced { weight: vars[vars.len() - 1].as_tensor().clone(), bias: None }
        } else if site.path.contains("layers.0.") && site.kind == SiteKind::Linear {
            vars.extend([values(&[3, site.input], from), values(&[site.output, 3], from + 1)]);
            let [a, b] = [vars.len() - 2, vars.len() - 1].map(|var| vars[var].as_tensor().t().unwrap());
            let b = (b * 2.0).unwrap();
            Change::Linear(LinearDelta { a, b, b_bias: None, scaling: 2.0, magnitude: None, bias: None })
        } else {
            continue;
        };
        changes.insert(SiteId(id), change);
    }
    (changes, vars)
}

#[test]
fn a_blocks_own_backward_is_that_of_its_graph() {
    for mut config in [mistral(), llama()] {
        config["attention_bias"] = false.into();
        config["mlp_bias"] = false.into();
        let model = model(&config);
        let (changes, vars) = changes(&model);
        let rows = 45;
        let run = Run { adapter: Arc::new(Adapter::unnamed(changes)), rows: 0..rows, scale: 1.0 };
        let lora = LoraBatch { runs: vec![run], dropout: None };
        let layout = model.layout(&Input::Tokens { ids: &ids(rows, 3), lengths: &[30, 1, 14] }).unwrap();
        let hidden = model.config.hidden_size;
        for layer in 0..2 {
            let (x, gradient) = (values(&[rows, hidden], 1), values(&[rows, hidden], 2));
            let graph = model.block(layer, x.as_tensor(), &layout, &lora).unwrap();
            let (output, own) = model.learn(layer, x.as_tensor(), &layout, &lora).unwrap().unwrap();
            assert!(largest(&output, &graph) < ROUNDING);

            let expected = seed(&graph, gradient.as_tensor().clone()).unwrap().backward().unwrap();
            let (for_x, learnt) = own(gradient.as_tensor()).unwrap();
            let difference = largest(&for_x, expected.get(x.as_tensor()).unwrap());
            assert!(difference < ROUNDING, "layer {layer}: {difference}");
            let seeds = learnt.into_iter().map(|(tensor, gradient)| seed(&tensor, gradient).unwrap());
            let start = seeds.reduce(|sum, seed| (sum + seed).unwrap()).unwrap();
            let got = start.backward().unwrap();
            let mut compared = 0;
            for var in &vars {
                let (Some(got), Some(expected)) = (got.get(var.as_tensor()), expected.get(var.as_tensor())) else {
                    assert!(got.get(var.as_tensor()).is_none() && expected.get(var.as_tensor()).is_none());
                    continue;
                };
                assert!(largest(got, expected) < ROUNDING, "layer {layer}: {}", largest(got, expected));
                compared += 1;
            }
            assert_eq!(compared, [14, 9][layer]);
        }
        let dropped = LoraBatch { dropout: Some(crate::lora::Dropout { rate: 0.5, seed: 1 }), ..lora };
        assert!(model.learn(0, values(&[rows, hidden], 1).as_tensor(), &layout, &dropped).unwrap().is_none());
    }
}

/// The largest difference, in parts of the largest number.
fn largest(a: &Tensor, b: &Tensor) -> f32 {
    let most = |x: Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    most((a - b).unwrap()) / most(b.clone())
}
