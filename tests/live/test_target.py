"""`EMA(target=...)` sets the weights of another model to the average."""

import copy
import pickle

import keras
import numpy
import pytest
import reference
from keras import layers, ops
from models import BATCH, data, equal

from keras_wavg import EMA

DECAY = 0.9
BATCHES = 25
X, Y = data(BATCHES)
on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="specific to JAX"
)


def network(name):
    """Its last layer is linear, so that gradients depend on the teacher."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="tanh"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dense(1),
        ],
        name=name,
    )


class MeanTeacher(keras.Model):
    """The loss of a batch has the distance to the predictions of a teacher."""

    def __init__(self, **options):
        super().__init__(**options)
        self.student, self.teacher = network("student"), network("teacher")
        self.teacher.trainable = False
        self.distance = keras.metrics.Sum(name="distance")

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        error = y_pred - ops.stop_gradient(self.teacher(x, training=False))
        distance = ops.mean(ops.square(error))
        self.distance.update_state(distance)
        return ops.mean(ops.square(y_pred - y)) + distance


def mean_teacher(optimizer="sgd", **options):
    keras.utils.set_random_seed(1)
    model = MeanTeacher()
    model(X[:1])
    model.compile(optimizer, **options)
    return model


class Recorded(keras.callbacks.Callback):
    """Records both networks after each step, and the distance in each step."""

    def __init__(self):
        super().__init__()
        self.students, self.teachers, self.distances = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.students:
            self.students.append(self.model.student.get_weights())
            self.teachers.append(self.model.teacher.get_weights())

    def on_train_batch_end(self, batch, logs=None):
        self.students.append(self.model.student.get_weights())
        self.teachers.append(self.model.teacher.get_weights())
        self.distances.append(float(logs["distance"]))


class Bare(Recorded):
    """Does not read the model before training has ended.

    On JAX this leaves the weights in the trainer at every step.
    """

    def on_train_batch_begin(self, batch, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        self.distances.append(float(logs["distance"]))


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def assert_close(received, expected, rtol, atol=0):
    """Compare lists of arrays."""
    for one, other in zip(received, expected, strict=True):
        numpy.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def predicted(weights, x):
    """The predictions of a network, in float64."""
    kernel, bias, gamma, beta, mean, variance, last, shift = (
        numpy.asarray(array, "float64") for array in weights
    )
    hidden = numpy.tanh(x @ kernel + bias)
    hidden = gamma * (hidden - mean) / (variance + 1e-3) ** 0.5 + beta
    return hidden @ last + shift


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_correction": False, "device": "cpu"},
        {"every_steps": 3, "start_step": 4},
    ],
    ids=str,
)
def test_the_target_is_the_average_after_each_of_50_steps(options):
    model, recorded = mean_teacher(), Recorded()
    fit(model, EMA(DECAY, target=model.teacher, **options), recorded)
    initial, *students = recorded.students
    assert len(students) == 2 * BATCHES
    corrects = options.get("bias_correction", True)
    every, start = options.get("every_steps", 1), options.get("start_step", 0)
    for step, teacher in enumerate(recorded.teachers):
        expected = initial
        if step >= start + every:
            expected = reference.ema(
                students[:step],
                DECAY,
                initial=None if corrects else initial,
                every=every,
                start=start,
            )
        assert_close(teacher, expected, rtol=2e-5, atol=2e-6)


def test_each_step_uses_the_target_of_the_step_before():
    def distances(recorded):
        model = mean_teacher()
        fit(model, EMA(DECAY, target=model.teacher), recorded)
        return recorded.distances, model.get_weights()

    recorded = Recorded()
    seen, weights = distances(recorded)
    totals = numpy.cumsum(
        [
            measured_distance(recorded, step)
            for step in range(BATCHES, 2 * BATCHES)
        ]
    )
    numpy.testing.assert_allclose(seen[BATCHES:], totals, rtol=1e-3)
    # Without another callback that reads the weights.
    seen_alone, weights_alone = distances(Bare())
    assert seen_alone == seen
    assert equal(weights_alone, weights)


def measured_distance(recorded, step):
    """The distance in a step, from the weights before it."""
    batch = step % BATCHES
    x = X[batch * BATCH : (batch + 1) * BATCH].astype("float64")
    student, teacher = recorded.students[step], recorded.teachers[step]
    # In training a batch is normalized with its own moments.
    hidden = numpy.tanh(x @ student[0] + student[1])
    own = [*student[:4], hidden.mean(0), hidden.var(0), *student[6:]]
    return ((predicted(own, x) - predicted(teacher, x)) ** 2).mean()


def test_a_step_that_is_not_compiled_gives_the_same_target():
    ends = []
    for eagerly in (False, True):
        model = mean_teacher(run_eagerly=eagerly)
        fit(model, EMA(DECAY, target=model.teacher), epochs=1)
        ends.append(model.teacher.get_weights())
    assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_a_saved_training_resumes_with_its_target(tmp_path, ending):
    whole, first, resumed = (mean_teacher("adam") for _ in range(3))
    averages = [EMA(DECAY, target=m.teacher) for m in (whole, first, resumed)]
    fit(whole, averages[0], epochs=4)
    fit(first, averages[1])
    path = tmp_path / f"saved{ending}"
    (first.save if ending == ".keras" else first.save_weights)(path)
    averages[2].set_model(resumed)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(path)
    assert equal(resumed.teacher.get_weights(), first.teacher.get_weights())
    fit(resumed, averages[2], epochs=4, initial_epoch=2)
    assert equal(resumed.get_weights(), whole.get_weights())
    assert equal(resumed.teacher.get_weights(), whole.teacher.get_weights())


def test_evaluation_and_restore_do_not_change_the_target():
    model = mean_teacher()
    ema = EMA(DECAY, target=model.teacher)
    fit(model, ema, validation_data=(X, Y))
    teacher = model.teacher.get_weights()
    # The weights of the model are those of the student, then of the teacher.
    assert equal(ema.get_weights()[: len(teacher)], teacher)
    assert equal(model.student.get_weights(), teacher)
    ema.restore()
    assert not equal(model.student.get_weights(), teacher)
    model.evaluate(X, Y, verbose=0, callbacks=[ema])
    assert equal(model.teacher.get_weights(), teacher)


def test_a_layer_can_be_the_target_of_some_of_the_weights():
    class WithCopy(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = layers.Dense(4), layers.Dense(1)
            self.copy_of_last = layers.Dense(1, trainable=False)

        def call(self, inputs):
            hidden = self.first(inputs)
            self.copy_of_last(hidden)
            return self.last(hidden)

    model = WithCopy()
    model(X[:1])
    model.compile("sgd", "mse")
    paths = [variable.path for variable in model.last.weights]
    fit(model, EMA(include=paths.__contains__, target=model.copy_of_last))
    averaged = model.last.get_weights()
    assert equal(model.copy_of_last.get_weights(), averaged)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="specific to torch"
)
def test_modules_of_torch_can_have_a_target():
    import torch

    student, teacher = (
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.TorchModuleWrapper(torch.nn.Linear(4, 1)),
            ]
        )
        for _ in range(2)
    )
    student.compile("sgd", "mse")
    fit(student, EMA(DECAY, target=teacher))
    assert equal(teacher.get_weights(), student.get_weights())


def test_a_custom_training_loop_updates_the_target():
    model = mean_teacher()
    ema = EMA(DECAY, target=model.teacher)
    ema.set_model(model)
    samples = []
    for step in range(5):
        for variable in model.student.weights:
            variable.assign(ops.full(variable.shape, 1.0 + step))
        samples.append(model.student.get_weights())
        ema.update()
    expected = reference.ema(samples, DECAY)
    assert_close(model.teacher.get_weights(), expected, rtol=1e-5)


# What is refused


@pytest.mark.parametrize("target", ["teacher", 3, keras.Variable([1.0])])
def test_a_target_that_is_not_a_model_is_refused(target):
    with pytest.raises(ValueError, match="`target` must be a Keras model or"):
        EMA(target=target)


def other_shape():
    return keras.Sequential([keras.Input((4,)), layers.Dense(7)])


def not_built():
    return keras.Sequential([layers.Dense(6)])


def other_order():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.BatchNormalization(),
            layers.Dense(6),
            layers.Dense(1),
        ]
    )


@pytest.mark.parametrize("build", [other_shape, not_built, other_order])
def test_a_target_with_other_weights_is_refused_before_training(build):
    model = mean_teacher()
    before = model.student.get_weights()
    with pytest.raises(ValueError, match=r"must be built and have the average"):
        fit(model, EMA(DECAY, target=build()))
    assert equal(model.student.get_weights(), before)


def test_a_target_that_is_trained_is_refused():
    model = mean_teacher()
    model.teacher.trainable = True
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"must not be trained.*trainable = F"):
        fit(model, EMA(DECAY, target=model.teacher))


def test_the_model_itself_is_refused_as_its_target():
    model = mean_teacher()
    with pytest.raises(ValueError, match="must have at least one floating"):
        fit(model, EMA(DECAY, target=model))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
)
def test_a_callback_with_a_target_is_not_copied(copied):
    ema = EMA(DECAY, target=network("teacher"))
    with pytest.raises(ValueError, match="with a `target` cannot be copied"):
        copied(ema)


@on_jax
def test_a_target_outside_of_the_model_warns_on_jax():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    teacher = keras.models.clone_model(model)
    with pytest.warns(UserWarning, match=r"Write `model.target = target`"):
        fit(model, EMA(DECAY, target=teacher))
    assert equal(teacher.get_weights(), model.get_weights())
