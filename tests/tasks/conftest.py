import pytest

from taskpgm.tasks import corpus, stdlib_tasks


@pytest.fixture(scope="session")
def suite():
    return stdlib_tasks(0)


@pytest.fixture(scope="session")
def tokenizer(suite):
    texts = [row.prompt + row.response for task in suite for row in task.train[:40]]
    return corpus.train_tokenizer(texts, 400)
