//! The end of a language model in training, on the CPU: a norm, logits, their loss, and the way back, some rows at a time.
//!
//! A weight that learns whole has a gradient as large as itself. Each part of the rows adds to the same one, where a graph
//! would make one a part and add them up. Which rows come when is the caller's business.
//! Shapes: rows packed `[rows, hidden]`; all f32.

use candle_core::{Device, Result, Tensor};

use super::buffer::Buffer;
use super::cpu::{multiply, multiply_long};
use super::learning::{Layer, Learnt, Norm, Weight, turned, view};
use super::loss::cross_entropies;
use super::slices::with_slices;

/// A norm and the layer behind it, with what both have learnt so far.
#[derive(Debug)]
pub struct Head<'a> {
    norm: Norm<'a>,
    layer: Layer<'a>,
    /// The gradient of a weight that learns whole, `[vocab, hidden]`.
    whole: Option<Buffer>,
    learnt: Vec<Learnt>,
}

impl<'a> Head<'a> {
    /// Begins with gradients of zero.
    #[must_use]
    pub fn new(norm: Norm<'a>, layer: Layer<'a>) -> Self {
        Self { norm, layer, whole: None, learnt: Vec::new() }
    }

    /// Returns `-log softmax(logits)[target]` of rows `x`, and the gradient of their input of Σ weight·loss.
    ///
    /// # Errors
    /// When a target is out of range or shapes do not fit.
    pub fn learn(&mut self, x: &Tensor, targets: &[u32], weight: f32) -> Result<(Vec<f64>, Tensor)> {
        let mut losses = Vec::new();
        let for_x = with_slices([x], |[x]| {
            let normed = self.norm.forward(x)?;
            let (mut logits, inner) = self.layer.forward(&normed, targets.len())?;
            losses = cross_entropies(&mut logits, targets, weight)?;
            let for_normed = self.backward((&normed, &inner), &logits, targets.len())?;
            self.norm.backward(x, &for_normed, &mut self.learnt)
        })?;
        Ok((losses, Tensor::from_vec(for_x.into_vec(), x.shape(), &Device::Cpu)?))
    }

    fn backward(&mut self, seen: (&[f32], &[f32]), gradient: &[f32], rows: usize) -> Result<Buffer> {
        let Layer { weight: Weight::Whole(weight), bias: None } = self.layer else {
            return self.layer.backward(seen, gradient, rows, &mut self.learnt);
        };
        let (output, input) = weight.dims2()?;
        let mut for_x = Buffer::new(rows * input);
        with_slices([weight], |[weight]| {
            if input.is_multiple_of(16) {
                return Ok(multiply_long((gradient, rows), (weight, input), &mut for_x)?);
            }
            Ok(multiply(view(gradient, (rows, output))?, view(weight, (output, input))?, &mut for_x, false)?)
        })?;
        let (add, whole) = match self.whole.take() {
            Some(whole) => (true, self.whole.insert(whole)),
            None => (false, self.whole.insert(Buffer::new(output * input))),
        };
        multiply(turned(gradient, (output, rows))?, view(seen.0, (rows, input))?, whole, add)?;
        Ok(for_x)
    }

    /// Returns what learns, with its gradients of all rows.
    ///
    /// # Errors
    /// When a gradient cannot become a tensor.
    pub fn learnt(mut self) -> Result<Vec<Learnt>> {
        if let (Weight::Whole(weight), Some(whole)) = (self.layer.weight, self.whole) {
            let gradient = Tensor::from_vec(whole.into_vec(), weight.shape(), &Device::Cpu)?;
            self.learnt.push((weight.clone(), gradient));
        }
        Ok(self.learnt)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::{Linear, dense_product};
    use super::super::{cross_entropy, rms_norm};
    use super::*;
    use crate::ops::fused::tests::{largest_difference, values};
    use crate::ops::seed;
    use candle_core::Var;

    /// The head's gradients of two parts of 7 rows against those of the graph.
    fn check(whole: bool, hidden: usize) {
        let [x, norm, weight] = [(&[7, hidden][..], 1), (&[hidden], 2), (&[40, hidden], 3)]
            .map(|(shape, seed)| Var::from_tensor(&values(shape, seed)).unwrap());
        let (linear, targets) = (Linear::dense(weight.as_detached_tensor()), [3, 39, 0, 7, 7, 1, 20]);

        let normed = rms_norm(&x, &norm, 1e-5).unwrap();
        let logits = match whole {
            true => dense_product(&normed, &weight).unwrap(),
            false => linear.forward(&normed).unwrap(),
        };
        let (losses, gradient) = cross_entropy(&logits.detach(), &targets, 0.3).unwrap();
        let expected = seed(&logits, gradient).unwrap().backward().unwrap();

        let layer =
            Layer { weight: if whole { Weight::Whole(&weight) } else { Weight::Frozen(&linear, None) }, bias: None };
        let mut head = Head::new(Norm { weight: &norm, learns: true, eps: 1e-5 }, layer);
        let mut got = Vec::new();
        for (from, len) in [(0, 4), (4, 3)] {
            let rows = x.narrow(0, from, len).unwrap().detach();
            let (loss, for_x) = head.learn(&rows, &targets[from..from + len], 0.3).unwrap();
            assert!(loss.iter().zip(&losses[from..]).all(|(a, b)| (a - b).abs() < 1e-5));
            got.push(for_x);
        }
        let for_x = Tensor::cat(&got, 0).unwrap();
        assert!(largest_difference(&for_x, expected.get(&x).unwrap()) < 1e-5);
        let mut sums = [norm.zeros_like().unwrap(), weight.zeros_like().unwrap()];
        for (of, gradient) in head.learnt().unwrap() {
            let place = usize::from(of.id() == weight.id());
            sums[place] = (&sums[place] + gradient).unwrap();
        }
        assert!(largest_difference(&sums[0], expected.get(&norm).unwrap()) < 1e-5);
        match expected.get(&weight) {
            Some(expected) => assert!(largest_difference(&sums[1], expected) < 1e-5),
            None => assert!(!whole),
        }
    }

    #[test]
    fn a_head_has_the_gradients_of_the_graph() {
        for whole in [false, true] {
            check(whole, 16);
            check(whole, 10);
        }
    }

    #[test]
    fn targets_out_of_range_are_refused() {
        let (x, norm, weight) = (values(&[2, 8], 1), values(&[8], 2), values(&[5, 8], 3));
        let layer = Layer { weight: Weight::Whole(&weight), bias: None };
        let mut head = Head::new(Norm { weight: &norm, learns: false, eps: 1e-5 }, layer);
        head.learn(&x, &[0, 5], 1.0).unwrap_err();
    }
}
