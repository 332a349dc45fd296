"""What anyone gets without a language model."""

from account_tax.review.baselines import predict_baselines


def test_baselines_learn_from_the_train_split():
    texts = ["taxi ride", "taxi home", "lunch box"] * 10
    labels = ["travel", "travel", "meals"] * 10
    found = predict_baselines(texts, labels, ["lunch box", "taxi"])
    assert found == {"majority": ["travel", "travel"], "tfidf": ["meals", "travel"]}


def test_texts_without_any_ngram_leave_the_commonest_account():
    found = predict_baselines(["☕", "✈", "⛽"], ["meals", "travel", "travel"], ["☕", "🍜"])
    assert found == {name: ["travel", "travel"] for name in ("majority", "tfidf")}
