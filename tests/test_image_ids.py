import pytest

from dr_keras.data.image_ids import image_id, image_path, is_outside_root


@pytest.mark.parametrize(
    ("path", "root", "id"),
    [
        ("/data/cats/a.jpg", "/data", "cats/a.jpg"),
        ("/data/a.jpg", "/data/", "a.jpg"),
        ("/database/a.jpg", "/data", "/database/a.jpg"),
        ("/elsewhere/a.jpg", "/data", "/elsewhere/a.jpg"),
        ("/cats/a.jpg", "/", "cats/a.jpg"),
        ("/data/odd\udcff/ \n.jpg", "/data", "odd\udcff/ \n.jpg"),
    ],
)
def test_a_path_and_its_id(path, root, id):
    assert image_id(path, root) == id
    assert image_path(id, root) == path
    assert is_outside_root(id) == id.startswith("/")
